"""Every file that a command opens, with the words that make it open it."""

from dataclasses import dataclass

from finetune.cli import COMMANDS
from tests.hostile.material import DATA, SMALL

_LISTED = ["data=manifest", "data.root=."]
_UNTAUGHT = tuple(word for word in SMALL if not word.startswith("backbone.weights"))


@dataclass(frozen=True)
class Target:
    """A command and a file that it opens.

    Args:
        command: Its name.
        file: Path of the file in the case's folder.
        form: Its format, a key of :data:`tests.hostile.contents.FORMATS`.
        words: What follows the command.
        needed: Whether the command cannot do without the file: it must refuse a hostile one.
        folders: What is copied from the material.
        builds: Whether the command builds what a configuration names; else that is data, and may stand there.
        own_cpu_s: Processor time that the command takes with a good file, where that is much; it comes on top.
    """

    command: str
    file: str
    form: str
    words: tuple[str, ...]
    needed: bool = True
    folders: tuple[str, ...] = ("data",)
    builds: bool = True
    own_cpu_s: float = 0.0


def _of_bundle(command: str, *words: str, folders: tuple[str, ...] = ("data", "bundle")) -> list[Target]:
    return [
        Target(command, f"bundle/{name}", form, ("bundle", *words), folders=folders)
        for name, form in (
            ("model.json", "model.json"),
            ("model.safetensors", "safetensors"),
            ("unknown.safetensors", "safetensors"),
        )
    ]


def _composed(command: str, *words: str, needed: bool = True) -> list[Target]:
    """Files that the configuration of a run names."""
    none = (*_UNTAUGHT, "backbone.weights=none")
    tail = tuple(words)
    found = [
        Target(command, "data/cat/3.png", "image", (*DATA, *none, *tail), needed=False),
        Target(
            command, "list.csv", "csv", (*_LISTED, "data.path=list.csv", *none, *tail), folders=("data", "list.csv")
        ),
        Target(
            command, "list.tsv", "csv", (*_LISTED, "data.path=list.tsv", *none, *tail), folders=("data", "list.tsv")
        ),
        Target(
            command,
            "list.parquet",
            "manifest.parquet",
            (*_LISTED, "data.path=list.parquet", *none, *tail),
            folders=("data", "list.parquet"),
        ),
    ]
    if command == "audit":
        return found
    weights = [
        Target(
            command,
            f"weights.{suffix}",
            form,
            (*DATA, *_UNTAUGHT, f"backbone.weights=weights.{suffix}", *tail),
            folders=("data", f"weights.{suffix}"),
        )
        for suffix, form in (("safetensors", "safetensors"), ("pth", "pth"))
    ]
    head = Target(
        command,
        "head.safetensors",
        "safetensors",
        (*DATA, *_UNTAUGHT, "backbone.weights=weights.safetensors", "head.weights=head.safetensors", *tail),
        folders=("data", "weights.safetensors", "head.safetensors"),
    )
    return [*found, *weights, head]


_TRAIN = ("schedule=frozen", "schedule.phases.0.epochs=1", "run_dir=new")
_REPORT = (
    ("config.yaml", "yaml", True),
    ("results.json", "json", True),
    ("plan.json", "json", True),
    ("metrics.csv", "csv", True),
    ("predictions.csv", "csv", True),
    ("evaluation.safetensors", "safetensors", True),
    ("final.safetensors", "safetensors", False),
    ("phases/0-head/start.safetensors", "safetensors", False),
    ("phases/1-all/start.safetensors", "safetensors", False),
    ("model/model.json", "model.json", True),
    ("model/model.safetensors", "safetensors", True),
)
_RESUME = (
    ("config.yaml", "yaml", True),
    ("run.json", "json", True),
    ("phases/0-head/result.json", "json", True),
    ("phases/0-head/start.safetensors", "safetensors", False),
    ("phases/0-head/last.ckpt", "ckpt", False),
    ("phases/1-all/start.safetensors", "safetensors", True),
    ("phases/1-all/last.ckpt", "ckpt", True),
    ("phases/1-all/best.ckpt", "ckpt", True),
    ("plan.json", "json", False),
    ("checksums.json", "json", False),
    ("metrics.csv", "csv", False),
    ("split.csv", "csv", False),
)

TARGETS: list[Target] = [
    *[
        t
        for command in ("train", "lr-find")
        # a few steps: an image is read anew in each epoch, and so would be a valid one of 25 million pixels, 67 times
        for t in _composed(command, *(_TRAIN if command == "train" else ("schedule=full", "--steps", "20")))
    ],
    *_composed("plan"),
    *_composed("audit"),
    # folders of weights: a bundle, and the hub's layout with timm's and with transformers' description of the input
    *[
        Target(
            "plan",
            f"{folder}/{name}",
            form,
            (*DATA, *_UNTAUGHT, f"backbone.weights={folder}"),
            needed=needed,
            folders=("data", folder),
        )
        for folder, name, form, needed in (
            ("bundle", "model.json", "model.json", True),
            ("bundle", "model.safetensors", "safetensors", True),
            ("hub", "config.json", "json", False),
            ("hub", "model.safetensors", "safetensors", True),
            ("processor", "preprocessor_config.json", "json", False),
        )
    ],
    *[
        Target(
            "ladder",
            f"ladder/{name}",
            "json",
            (*DATA, *SMALL, "--rungs", "frozen,probe", "--epochs", "1", "--seeds", "1", "--output", "ladder"),
            folders=("data", "ladder"),
        )
        for name in ("begun.json", "features/0.json", "runs/frozen-0/results.json", "runs/frozen-0/plan.json")
    ],
    *[Target("resume", f"open/{name}", form, ("open",), needed, ("data", "open")) for name, form, needed in _RESUME],
    Target("resume", "stopped/phases/1-all/last.ckpt", "ckpt", ("stopped",), folders=("data", "stopped")),
    *[
        Target("resume", f"run/{name}", form, ("run",), needed, ("data", "run"), builds=False)
        for name, form, needed in (
            ("config.yaml", "yaml", True),
            ("run.json", "json", True),
            ("results.json", "json", False),
        )
    ],
    *[
        Target(
            command, f"spare/phases/1-all/{name}", form, words, needed=False, folders=("data", "spare"), builds=False
        )
        for command, words in (("resume", ("spare",)), ("runs", ("clean", "spare", "--yes")))
        for name, form in (("start.safetensors", "safetensors"), ("last.ckpt", "ckpt"))
    ],
    *[
        Target("sweep-table", f"sweep/{name}", "json", ("sweep",), folders=("sweep",))
        for name in ("jobs/0.json", "0/results.json")
    ],
    *[
        Target(
            "grow",
            file,
            form,
            ("run", *DATA, "--rename", "rename.csv", *SMALL[4:], *_TRAIN),
            folders=("data", "run", "rename.csv"),
            builds=False,
        )
        for file, form in (
            ("run/config.yaml", "yaml"),
            ("run/split.csv", "csv"),
            ("run/model/model.json", "model.json"),
            ("run/model/model.safetensors", "safetensors"),
            ("run/model/head.safetensors", "safetensors"),
            ("rename.csv", "csv"),
        )
    ],
    Target("evaluate", "run/config.yaml", "yaml", ("run",), folders=("data", "run"), builds=False),
    Target("evaluate", "run/model/model.json", "model.json", ("run",), folders=("data", "run")),
    Target("evaluate", "run/model/model.safetensors", "safetensors", ("run",), folders=("data", "run")),
    Target("evaluate", "data/cat/3.png", "image", ("bundle", *DATA), needed=False, folders=("data", "bundle")),
    Target(
        "evaluate",
        "list.csv",
        "csv",
        ("bundle", *_LISTED, "data.path=list.csv"),
        folders=("data", "bundle", "list.csv"),
    ),
    *_of_bundle("predict", "data", "--output", "out.csv"),
    Target(
        "predict",
        "data/cat/3.png",
        "image",
        ("bundle", "data", "--output", "out.csv", "--sheet", "out.html", "--excel"),
        needed=False,
        folders=("data", "bundle"),
    ),
    Target(
        "predict",
        "data/cat/3.png",
        "image",
        ("bundle", "data", "--output", "out.jsonl"),
        needed=False,
        folders=("data", "bundle"),
    ),
    *_of_bundle("pick", "data", "-n", "2", "--output", "out.csv"),
    Target(
        "pick",
        "data/cat/3.png",
        "image",
        ("bundle", "data", "-n", "2", "--output", "out.csv", "--sheet", "out.html"),
        needed=False,
        folders=("data", "bundle"),
    ),
    Target(
        "pick",
        "run/split.csv",
        "csv",
        ("run", "pool", "-n", "1", "--output", "out.csv"),
        needed=False,
        folders=("data", "run", "pool"),
    ),
    Target(
        "predict", "model.onnx", "onnx", ("model.onnx", "data", "--output", "out.csv"), folders=("data", "model.onnx")
    ),
    *[
        Target(
            "predict",
            f"list.{suffix}",
            form,
            ("bundle", f"list.{suffix}", "--output", "out.csv"),
            suffix != "txt",
            folders=("data", "bundle", f"list.{suffix}"),
        )
        for suffix, form in (("csv", "csv"), ("tsv", "csv"), ("txt", "list"), ("parquet", "manifest.parquet"))
    ],
    Target(
        "predict",
        ".out.csv.job",
        "list",
        ("bundle", "data", "--output", "out.csv"),
        needed=False,
        folders=("data", "bundle"),
    ),
    *[
        Target("cache", f"cache/features/ENTRY/{name}", form, (word,), needed=False, folders=("cache",))
        for word in ("list", "clear")
        for name, form in (("meta.json", "json"), ("chunks.bin", "binary"), ("data.bin", "binary"))
    ],
    *[
        Target("train", f"cache/{name}", form, (*DATA, *SMALL, *_TRAIN), needed=False, folders=("data", "cache"))
        for name, form in (
            ("features/ENTRY/meta.json", "json"),
            ("features/ENTRY/chunks.bin", "binary"),
            ("features/ENTRY/data.bin", "binary"),
            ("facts/ENTRY", "facts"),
        )
    ],
    *_of_bundle("embed", "data", "--output", "out.npz"),
    Target(
        "embed",
        "data/cat/3.png",
        "image",
        ("bundle", "data", "--output", "out.npz"),
        needed=False,
        folders=("data", "bundle"),
    ),
    Target(
        "embed",
        "weights.pth",
        "pth",
        ("data", *SMALL[:3], "backbone.weights=weights.pth", "--output", "out.npz"),
        folders=("data", "weights.pth"),
    ),
    *[
        Target(command, f"emb.{suffix}", form, (f"emb.{suffix}", *words), folders=(f"emb.{suffix}", "data", *more))
        for command, words, more in (
            ("search", ("data/cat/1.png", "--model", "run"), ("run",)),
            ("cluster", ("--clusters", "2", "--output", "out"), ()),
            ("classify", ("--method", "knn", "--output", "out"), ()),
        )
        for suffix, form in (("npz", "npz"), ("parquet", "parquet"))
    ],
    Target(
        "search",
        "white.whitening.safetensors",
        "safetensors",
        ("white.npz", "elsewhere.png", "--model", "run"),
        folders=("white.npz", "white.whitening.safetensors", "data", "run", "elsewhere.png"),
    ),
    *[
        Target("report", f"run/{name}", form, ("run",), needed, ("data", "run"), builds=False)
        for name, form, needed in _REPORT
    ],
    *[
        Target("runs", f"run/{name}", form, words, needed, ("data", "run"), builds=False)
        for words in (("list", "run"), ("clean", "run", "--yes"))
        for name, form, needed in (
            ("run.json", "json", False),
            # it shows settings as they stand there, and builds nothing
            ("config.yaml", "yaml", False),
            ("results.json", "json", words[0] == "list"),
            ("metrics.csv", "csv", False),
        )
    ],
    Target("init", "data/cat/3.png", "image", ("data", "--output", "out.yaml"), needed=False),
    Target("init", "list.csv", "csv", ("list.csv", "--output", "out.yaml"), folders=("data", "list.csv")),
    *_of_bundle("serve", "--port", "0"),
    Target("serve", "model.onnx", "onnx", ("model.onnx", "--port", "0"), folders=("model.onnx",)),
    *_of_bundle("export", "--format", "backbone", "--images", "data", "--check", "4", "--output", "out.safetensors"),
    Target(
        "export",
        "spare/exports/head.safetensors",
        "safetensors",
        ("spare", "--format", "head", "--images", "data", "--check", "4"),
        needed=False,
        folders=("data", "spare"),
    ),
    Target(
        "export",
        "bundle/README.md",
        "text",
        ("bundle", "--format", "onnx", "--images", "data", "--check", "4", "--output", "out.onnx"),
        needed=False,
        folders=("data", "bundle"),
        own_cpu_s=20.0,
    ),
]

# they print what the schema says
OPEN_NO_FILE = {"settings"}

assert {target.command for target in TARGETS} <= set(COMMANDS) - OPEN_NO_FILE
