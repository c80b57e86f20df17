"""How large the package is, and what its imports and types look like.

    uv run python -m tests.house_figures

Prints lines, files, files that one other imports, circles of imports, uses of ``dict[str, Any]`` and class names that are
defined twice. ``tests/test_imports.py`` holds those that must stay zero.
"""

import ast
from collections import Counter, defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "finetune"

# methods whose signature Lightning, torch, ONNX Runtime or pickle gives
GIVEN_SIGNATURES = {
    "on_save_checkpoint",
    "on_load_checkpoint",
    "save_checkpoint",
    "load_checkpoint",
    "state_dict",
    "load_state_dict",
    "get_metrics",
    "get_next",
    "__getstate__",
}

# where else ``dict[str, Any]`` may stand (a module, or a function in it), and why: arguments for another library's
# constructor, and contents of a checkpoint, have the types that the library gives them
EDGES = {
    "finetune.augment_settings": "arguments of torchvision's transforms, from _target_ nodes",
    "finetune.build.classifier": "arguments of a head's constructor",
    "finetune.build.phases": "settings of a phase as OmegaConf gives them",
    "finetune.config.given": "values of settings, of whatever type each has",
    "finetune.config.overrides.values_of": "values that Hydra's parser makes of words",
    "finetune.config.schema": "_target_ nodes and arguments of other libraries, as OmegaConf merges them",
    "finetune.config.to_plain": "the configuration for OmegaConf and YAML",
    "finetune.config.trust.module_node": "a _target_ node for Hydra",
    "finetune.data.array_image": "PIL.Image.Image.info",
    "finetune.data.huggingface_datasets": "splits and cells of the datasets library",
    "finetune.data.sources.kind": "arguments of a source's builder",
    "finetune.data.torchvision_datasets": "arguments of torchvision's data sets",
    "finetune.export.client.function_of": "the namespace that exec fills",
    "finetune.models.classifier.build_classifier": "arguments of a head's constructor",
    "finetune.models.heads.kind": "arguments of a head's constructor",
    "finetune.models.user_modules": "_target_ nodes of the user's classes",
    "finetune.models.sources": "arguments of a library's network",
    "finetune.table": "rows of a table, as csv and pyarrow give them",
    "finetune.training.callbacks.checkpoints.read_checkpoint": "contents of a checkpoint, as torch.load gives them",
    "finetune.training.param_groups": "what torch.optim.Optimizer takes",
    "finetune.training.phase_module.PhaseModule._course": "contents of a checkpoint, for torch.save",
    "finetune.training.phase_module.PhaseModule.best_checkpoint": "contents of a checkpoint, for torch.save",
    "finetune.training.rate_trials.RateTrials.state": "contents of a checkpoint, for torch.save",
}

# readers of a JSON or YAML document that check it and hand it on whole, where a dataclass should travel
UNPARSED = {
    "finetune.bundle.read_model_json",
    "finetune.config.plain_yaml.read_plain_yaml",
    "finetune.inference.onnx_engine.OnnxEngine._described",
    "finetune.models.weights.read_json",
    "finetune.models.weights.read_metadata",
}


def module_name(path: Path) -> str:
    """Dotted name of a file of the package.

    >>> module_name(PACKAGE / "data" / "index.py")
    'finetune.data.index'
    """
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def trees() -> dict[str, ast.Module]:
    """The parsed files of the package by module name."""
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module, names: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever in the file.

    Args:
        tree: The parsed file.
        names: All modules of the package.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            found |= submodules or {node.module}
    return found & names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan's strongly connected components of more than one module)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def classes_defined_twice(parsed: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Public class names that more than one module defines, with these modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in parsed.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def untyped_dicts(parsed: dict[str, ast.Module], spelled: str = "dict[str, Any]") -> Counter[str]:
    """Count ``dict[str, Any]``, or another annotation, by the module, class and function that it stands in.

    >>> untyped_dicts({"a": ast.parse("x: dict[str, Any]; \\ndef f() -> dict[str, Any]: ...")})
    Counter({'a': 1, 'a.f': 1})
    """
    found: Counter[str] = Counter()

    def visit(node: ast.AST, scope: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope = f"{scope}.{node.name}"
        if isinstance(node, ast.Subscript) and ast.unparse(node) == spelled:
            found[scope] += 1
        # an annotation in quotes
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found[scope] += node.value.count(spelled) if "``" not in node.value else 0
        for child in ast.iter_child_nodes(node):
            visit(child, scope)

    for name, tree in parsed.items():
        visit(tree, name)
    return +found


def outside_edges(found: Counter[str]) -> Counter[str]:
    """Those that are neither at an edge nor in a reader that hands a document on whole."""

    def is_edge(scope: str) -> bool:
        return scope.rpartition(".")[2] in GIVEN_SIGNATURES or any(
            scope == edge or scope.startswith(f"{edge}.") for edge in (*EDGES, *UNPARSED)
        )

    return Counter({scope: count for scope, count in found.items() if not is_edge(scope)})


def main() -> None:
    """Print the figures."""
    parsed = trees()
    names = set(parsed)
    everywhere = {name: imports(tree, names) - {name} for name, tree in parsed.items()}
    importers = Counter(target for targets in everywhere.values() for target in targets)
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    once = sorted(name for name, count in importers.items() if count == 1 and name not in packages)
    untyped = untyped_dicts(parsed)
    unparsed = {scope: count for scope, count in untyped.items() if scope in UNPARSED}
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))
    print(f"lines                              {lines:6}")
    print(f"files                              {len(parsed):6}")
    print(f"files that one other imports       {len(once):6}")
    print(f"circles of imports                 {len(circles(everywhere)):6}")
    print(f"dict[str, Any]                     {sum(untyped.values()):6}")
    print(f"  outside edges                    {sum(outside_edges(untyped).values()):6}")
    print(f"  documents handed on whole        {sum(unparsed.values()):6}")
    print(f"Mapping[str, Any]                  {sum(untyped_dicts(parsed, 'Mapping[str, Any]').values()):6}")
    print(f"class names defined twice          {len(classes_defined_twice(parsed)):6}")
    for group in circles(everywhere):
        print(f"  circle: {', '.join(group)}")
    for name, modules in sorted(classes_defined_twice(parsed).items()):
        print(f"  twice: {name} in {', '.join(modules)}")
    for name, count in sorted(outside_edges(untyped).items()) + sorted(unparsed.items()):
        print(f"  dict[str, Any]: {count:3} in {name}")
    print(f"  imported once: {', '.join(once)}")


if __name__ == "__main__":
    main()
