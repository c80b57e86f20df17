"""Every file of ``conf/`` composes, and every experiment runs."""

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml

from finetune.config import compose, composed_yaml, conf_dir, group_choices
from finetune.config.keys import all_keys, choices_of
from finetune.config.schema import Config, setting_of
from finetune.errors import UserError
from tests.runs import train_tiny

GROUPS = group_choices()
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]

# what a choice needs besides itself
NEEDS = {
    ("data", "folder"): ["data.root=."],
    ("data", "manifest"): ["data.path=labels.csv"],
    ("data", "torchvision"): ["data.name=OxfordIIITPet"],
    ("data", "huggingface"): ["data.path=dataset"],
    ("backbone", "timm"): ["backbone.name=resnet10t"],
    ("backbone", "torchvision"): ["backbone.name=resnet18"],
    ("backbone", "transformers"): ["backbone.name=resnet-50"],
    ("backbone", "own"): ["backbone._target_=torch.nn.Identity", "backbone.stages={stem: [conv1]}"],
    ("head", "own"): ["head._target_=torch.nn.Linear"],
    ("loss", "own"): ["loss._target_=torch.nn.CrossEntropyLoss"],
    ("input", "multispectral"): ["input.channels=5"],
}


def test_all_files_are_found() -> None:
    found = {path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*.yaml")}
    assert found == {"train.yaml"} | {f"{group}/{choice}.yaml" for group, choice in CHOICES}
    assert len(CHOICES) > 20


@pytest.mark.usefixtures("ray_launcher")
@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    words = [f"{group}={choice}", *NEEDS.get((group, choice), [])]
    if group != "data" and group != "experiment":
        words.append("data=digits")
    assert compose(words)


def test_every_section_of_the_schema_has_a_folder() -> None:
    sections = {field.name for field in fields(Config) if is_dataclass(field.default_factory)}
    assert {"input", "loss", "head", "cache", "checkpoint"} < sections <= set(GROUPS)


def lines_of(path: Path) -> list[tuple[str, str]]:
    """The keys of a file that are not indented, each with its comment."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("#", " "))]
    return [(line.partition(":")[0], line.partition(" # ")[2]) for line in lines if line]


@pytest.mark.parametrize("group", ["data", "input", "backbone", "head", "schedule", "loss", "cache", "checkpoint"])
def test_the_files_of_a_section_name_all_its_keys_with_the_meanings_of_the_schema_and_change_no_other_default(
    group: str,
) -> None:
    section = getattr(Config(), group)
    known = {field.name: setting_of(field) for field in fields(section)}
    named: set[str] = set()
    for path in sorted(conf_dir().glob(f"{group}/*.yaml")):
        for key, comment in lines_of(path):
            named.add(key)
            if (group, path.stem) == ("schedule", "gradual") or group != "schedule":
                words = choices_of(section.__dataclass_fields__[key])
                choices = f"{' | '.join(words)}: " if words else ""
                assert comment == choices + known[key].meaning, f"{path}, {key}"
        assert path.read_text().startswith("# "), path
    assert named == set(known)
    default = getattr(compose(["data=digits"]), group)
    own = {"data": {"source": "digits", "augment": "light"}, "schedule": {"name": "gradual"}}
    changed = own.get(group, {}) | ({"phases": default.phases} if group == "schedule" else {})
    assert default == replace(section, **changed)


def commented(path: Path) -> list[tuple[str, str]]:
    """The keys that have a value, by their dotted paths, each with its comment: beside it, or on the line above."""
    found, above, stack = [], "", list[tuple[int, str]]()
    for line in path.read_text().splitlines():
        if key := re.match(r"( *)(- )?([\w.]+):(?: ([^#].*?))?(?: # (.*))?$", line):
            indent, dash, name, value, comment = key.groups()
            depth = len(indent) + len(dash or "")
            stack = [*(one for one in stack if one[0] < depth), (depth, name)]
            if value:
                found.append((".".join(name for _, name in stack), comment or above))
        above = line.strip().removeprefix("# ") if line.lstrip().startswith("#") else ""
    return [one for one in found if not one[0].startswith("defaults")]


@pytest.mark.parametrize("group", ["train.yaml", "schedule/*.yaml", "experiment/*.yaml", "sweep/*.yaml"])
def test_a_key_is_explained_where_it_first_stands_by_the_meaning_of_the_schema(group: str) -> None:
    known = {key.path: key.field for key in all_keys()}
    paths = sorted(conf_dir().glob(group))
    assert paths
    for path in paths:
        seen: set[str] = set()
        for name, comment in commented(path):
            key = f"{'schedule.' if group.startswith('schedule') else ''}{name}".removeprefix("hydra.sweeper.params.")
            key = key.replace("phases.", "phases.N.")
            if key in known and key not in seen:
                choices = choices_of(known[key])
                words = f"{' | '.join(choices)}: " if choices else ""
                assert comment == words + setting_of(known[key]).meaning, f"{path}, {name}"
            elif group.startswith("sweep") and key not in seen:
                assert comment, f"{path}, {name}"
            seen.add(key)


def test_train_yaml_names_every_setting_of_no_section_with_the_default_of_the_schema() -> None:
    written = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    del written["defaults"], written["hydra"]
    # the free-form sections have folders of their own
    rest = [key for key in all_keys() if "." not in key.path and key.path not in GROUPS]
    assert written == {key.path: key.default for key in rest}


def test_a_file_of_ones_own_an_experiment_and_the_line_replace_what_train_yaml_says(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, override data: digits, _self_]\nseed: 7\nmonitor: val/loss\n"
    )
    shown = composed_yaml(["monitor=val/ece"], config_dirs=[tmp_path], config_name="mine")
    assert "seed: 7\n" in shown
    assert "monitor: val/ece\n" in shown
    assert compose(["experiment=digits"]).name == "digits"


def test_the_words_that_the_schema_allows_are_those_that_the_program_knows() -> None:
    from finetune.data.color import HIGH_DEPTHS
    from finetune.data.sources import DATA_SOURCES

    known = {field.name: setting_of(field).choices for field in fields(Config().data)}
    assert tuple(known["high_depth"]) == HIGH_DEPTHS
    # each file of a source names the settings that it takes
    for name, source in DATA_SOURCES.items():
        assert set(source.settings) <= {key for key, _ in lines_of(conf_dir() / f"data/{name}.yaml")}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("rgb", (3, "expand")),
        ("gray", (1, "expand")),
        ("gray_folded", (1, "fold")),
        ("gray_summed", (1, "sum")),
        ("auto", ("auto", "expand")),
    ],
)
def test_the_input_is_chosen_by_name_and_by_key(choice: str, expected: tuple[int | str, str]) -> None:
    chosen = compose(["data=digits", f"input={choice}"]).input
    assert (chosen.channels, chosen.adapt) == expected
    by_key = compose(["data=digits", f"input.channels={expected[0]}", f"input.adapt={expected[1]}"]).input
    assert chosen == by_key
    assert compose(["experiment=digits", f"input={choice}"]).input == replace(chosen, size=32)
    assert compose(["data=digits", f"input={choice}", "input.adapt=reinit"]).input == replace(chosen, adapt="reinit")


def test_many_channels_need_their_number() -> None:
    with pytest.raises(UserError, match=r"input\.channels: must be given"):
        compose(["data=digits", "input=multispectral"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("input=gray_fold", "input='gray_fold': not a choice.*Did you mean 'gray_folded'"),
        ("input=1", "input='1': not a choice. Choices: auto, gray, gray_folded"),
        ("loss=focl", "loss='focl': not a choice. Choices: cross_entropy, focal, own. Did you mean 'focal'"),
        ("cache=off", "cache='off': not a choice"),
        ("input.chanels=1", "Did you mean 'input.channels'"),
    ],
)
def test_a_wrong_choice_of_a_section_is_named(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["data=digits", word])


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_runs(experiment: str, tmp_path: Path) -> None:
    config = compose([f"experiment={experiment}"])
    short = [f"schedule.phases.{n}.epochs=1" for n in range(len(config.schedule.phases))]
    limit = (
        ["data.limit_per_class=4", "data.num_workers=0"] if config.data.source == "digits" else ["data.num_workers=0"]
    )
    if config.data.source == "fractals":
        limit += ["data.classes=5", "data.images_per_class=8"]
    words = [f"experiment={experiment}", *short, *limit, "logger=none"]
    run = train_tiny(words, tmp_path / "run")
    assert sum(run.results.data.counts["test"]) == len((run.run_dir / "predictions.csv").read_text().splitlines()) - 1
