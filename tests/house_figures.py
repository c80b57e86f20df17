"""How large the package is, and what its imports and types look like.

    uv run python -m tests.house_figures

Prints lines, files, files that one other imports, circles of imports, uses of ``dict[str, Any]`` and class names that are
defined twice. ``tests/test_imports.py`` holds those that must stay zero.
"""

import ast
from collections import Counter, defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "finetune"


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


def main() -> None:
    """Print the figures."""
    parsed = trees()
    names = set(parsed)
    everywhere = {name: imports(tree, names) - {name} for name, tree in parsed.items()}
    importers = Counter(target for targets in everywhere.values() for target in targets)
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    once = sorted(name for name, count in importers.items() if count == 1 and name not in packages)
    untyped = {
        name: sum(ast.unparse(node) == "dict[str, Any]" for node in ast.walk(tree) if isinstance(node, ast.Subscript))
        for name, tree in parsed.items()
    }
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))
    print(f"lines                              {lines:6}")
    print(f"files                              {len(parsed):6}")
    print(f"files that one other imports       {len(once):6}")
    print(f"circles of imports                 {len(circles(everywhere)):6}")
    print(f"dict[str, Any]                     {sum(untyped.values()):6}")
    print(f"class names defined twice          {len(classes_defined_twice(parsed)):6}")
    for group in circles(everywhere):
        print(f"  circle: {', '.join(group)}")
    for name, modules in sorted(classes_defined_twice(parsed).items()):
        print(f"  twice: {name} in {', '.join(modules)}")
    for name, count in sorted(untyped.items(), key=lambda item: -item[1])[:10]:
        print(f"  dict[str, Any]: {count:3} in {name}")
    print(f"  imported once: {', '.join(once)}")


if __name__ == "__main__":
    main()
