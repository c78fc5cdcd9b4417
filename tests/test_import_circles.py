"""Folders of `vla` and of `sim` import each other in one direction only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONE_FOLDER = {"stages": "pipelines", "hub": "interop", "lerobot": "interop"}
"""Folders that become another one when they are renamed."""

Graph = dict[str, set[str]]


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """Every module that code imports, inside functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from runtime_imports(node)


def folder_graph(package: str) -> Graph:
    """The folders of a package, with the folders that each of them imports."""
    top = ROOT / package
    names = {path.name for path in top.iterdir() if (path / "__init__.py").exists()}
    graph: Graph = {ONE_FOLDER.get(name, name): set() for name in names}
    for path in top.rglob("*.py"):
        own = path.relative_to(top).parts[0]
        if own not in names:
            continue
        for module in runtime_imports(ast.parse(path.read_text())):
            parts = module.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] in names:
                source, target = (ONE_FOLDER.get(name, name) for name in (own, parts[1]))
                graph[source] |= {target} - {source}
    return graph


def circles(graph: Graph) -> list[set[str]]:
    """The strongly connected components of more than one node."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    reach = {name: reachable(name) for name in graph}
    components = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in graph
    }
    return [set(component) for component in components if len(component) > 1]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    code = "import a.b\ndef f():\n from c import d\nif TYPE_CHECKING:\n import e"
    assert list(runtime_imports(ast.parse(code))) == ["a.b", "c", "c.d"]


@pytest.mark.parametrize("package", ["vla", "sim"])
def test_folders_do_not_import_in_circles(package):
    assert circles(folder_graph(package)) == []
