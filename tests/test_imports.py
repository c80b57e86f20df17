"""Imports go one way, and each foreign library is known in few places."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.house_figures import EDGES, UNPARSED, circles, classes_defined_twice, outside_edges, trees, untyped_dicts
from tests.house_figures import imports as imports_of

PACKAGE = Path(__file__).parent.parent / "finetune"

# what reads configurations and composes the rooms below
TOP = ("config", "build", "runners", "commands", "cli", "api")
ABOVE_CONFIG = ("build", "runners", "commands", "cli", "api")

# room -> rooms that it must not import
FORBIDDEN = {
    "errors": {"*"},
    "input_spec": {"data", "models", "activation_cache", "training", "bundle", "inference", "export", "report", *TOP},
    "atomic_files": {"data", "models", "activation_cache", "training", "bundle", "inference", "export", "report", *TOP},
    "data": {"models", "activation_cache", "training", "bundle", "inference", "export", "report", *TOP},
    "pretraining": {"models", "activation_cache", "training", "bundle", "inference", "export", "report", *TOP},
    "models": {"data", "activation_cache", "training", "bundle", "inference", "export", "report", *TOP},
    "activation_cache": {"training", "bundle", "inference", "export", "report", *TOP},
    "training": {"inference", "export", "report", "ladder", *TOP},
    "run_folder": {"models", "training", "inference", "export", "report", *TOP},
    "bundle": {"data", "activation_cache", "training", "inference", "export", "report", *TOP},
    "confidence": {"data", "training", "inference", "export", "report", *TOP},
    "inference": {"training", "embeddings", "ladder", *TOP},
    "embeddings": {"training", "export", "report", "ladder", *TOP},
    "export": {"training", "ladder", *TOP},
    "report": {"training", "ladder", *TOP},
    "ladder": {"inference", "export", "commands", "cli", "api"},
    "config": {"data", "models", "training", "bundle", "inference", "export", "report", *ABOVE_CONFIG},
    "build": {"inference", "export", "report", "runners", "commands", "cli", "api"},
    # what the command line and Python both do with a run
    "runners": {"ladder", "commands", "cli", "api"},
    "api": {"commands", "cli"},
    "commands": {"cli", "api"},
}

# arithmetic of the evaluation view on arrays, which has nothing of a data set: the classifier makes the same view
ALLOWED = {("models/raw_images", "finetune.data.evaluation_pixels")}
# tables that a configuration is checked against; a test below holds that they load nothing heavy
TABLES = (
    "finetune.data.sources",
    "finetune.models.adaptations",
    "finetune.models.pools",
    "finetune.training.loss_kinds",
    "finetune.training.lr_schedules",
)
ALLOWED |= {
    (f"config/{name}", table) for name in ("checks", "ineffective_settings", "keys", "overrides") for table in TABLES
}
# a note on a setting of heads that was typed, just before the run loads torch
ALLOWED |= {("config/ineffective_settings", "finetune.models.heads")}

# library -> where it may be imported, as prefixes of module paths
KNOWN_BY = {
    "hydra": ("config", "build", "commands"),
    "omegaconf": ("config", "build", "commands"),
    "lightning": ("training", "data/datamodule", "api/fit", "arguments"),
    "timm": ("models/sources", "models/pretrained", "export"),
    "transformers": ("models/sources", "export"),
    "huggingface_hub": ("models/hub",),
}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[tuple[str, Path]]:
    files = [(str(path.relative_to(PACKAGE).with_suffix("")), path) for path in PACKAGE.rglob("*.py")]
    assert len(files) > 40
    return files


def test_rooms_import_in_one_direction() -> None:
    wrong = []
    for name, path in modules():
        room = name.split("/")[0]
        for imported in imports(path):
            parts = imported.split(".")
            if parts[0] == "finetune" and len(parts) > 1:
                banned = FORBIDDEN.get(room, set())
                allowed = any(name == by and imported.startswith(module) for by, module in ALLOWED)
                if (parts[1] in banned or "*" in banned) and not allowed:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_the_tables_that_a_configuration_is_checked_against_load_nothing_heavy() -> None:
    code = f"import sys, {', '.join(TABLES)}; print(sorted({{'torch', 'numpy', 'PIL', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inside_config_the_schema_knows_nothing_and_its_checks_know_the_schema_alone() -> None:
    def ours(module: str) -> set[str]:
        return {name for name in imports(PACKAGE / "config" / f"{module}.py") if name.startswith("finetune.")}

    assert ours("schema") == set()
    assert {name for name in ours("checks") if name.startswith("finetune.config")} == {
        "finetune.config.schema",
        "finetune.config.schema.Config",
        "finetune.config.schema.PhaseSettings",
        "finetune.config.schema.setting_of",
    }


def test_foreign_libraries_are_known_where_they_belong() -> None:
    wrong = []
    for name, path in modules():
        for imported in imports(path):
            allowed = KNOWN_BY.get(imported.split(".")[0])
            if allowed is not None and not name.startswith(allowed):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_only_commands_print_and_all_else_logs() -> None:
    printing = {
        name
        for name, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {name for name in printing if not name.startswith(("commands/", "cli"))} == {
        "export/client",  # a program of its own
        "inference/http_server",  # the last line of a process that ends at once
        "terminal_log",  # what the log is shown by
        "training/quiet_lightning",  # warnings of other libraries
        "training/rank_monitor",  # in threads and processes where the log may not be shown any more
    }


def test_only_the_command_line_tunes_its_process() -> None:
    importers = {name for name, path in modules() if "finetune.process_tuning" in imports(path)}
    assert importers == {"cli", "runners/train", "runners/execute", "runners/resume"}


def test_what_builds_an_object_by_its_name_is_known_to_one_module() -> None:
    builders = {"hydra.utils", "hydra.utils.instantiate", "hydra.utils.get_object", "hydra.utils.call", "pydoc"}
    builders |= {"hydra.utils.get_class", "hydra.utils.get_method", "hydra._internal", "runpy"}
    wrong = [name for name, path in modules() if imports(path) & builders and name != "config/trust"]
    assert wrong == []
    # from lists of ours: functions of the package, commands, sources of networks
    by_name = [name for name, path in modules() if "import_module(" in path.read_text()]
    assert sorted(by_name) == ["__init__", "cli", "config/trust", "models/sources/__init__"]


def test_no_module_reaches_itself_through_its_imports() -> None:
    parsed = trees()
    # those inside functions too
    graph = {name: imports_of(tree, set(parsed)) - {name} for name, tree in parsed.items()}
    assert sum(map(len, graph.values())) > 300
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_a_public_class_name_means_one_thing() -> None:
    assert classes_defined_twice(trees()) == {}


def test_results_and_records_travel_as_dataclasses() -> None:
    found = untyped_dicts(trees())
    assert outside_edges(found) == {}
    # an entry that nothing needs any more would let a new one pass
    assert [
        edge for edge in (*EDGES, *UNPARSED) if not any(f"{scope}.".startswith(f"{edge}.") for scope in found)
    ] == []
    assert sum(found[scope] for scope in UNPARSED) <= 8
    assert outside_edges(untyped_dicts({"finetune.x": ast.parse("def f() -> dict[str, Any]: ...")})) == {
        "finetune.x.f": 1
    }
