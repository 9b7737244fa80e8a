"""How lib/ is built: small files, imports in one direction, and a docstring on all that is public."""

import ast
from functools import cache

import pytest
from conftest import ROOT

LIB = ROOT / "lib"
FILES = {
    "lib." + path.relative_to(LIB).with_suffix("").as_posix().replace("/", "."): path for path in LIB.rglob("*.py")
}
FILES = {name.removesuffix(".__init__"): path for name, path in sorted(FILES.items())}


def imports(node):
    """Yield the modules of lib that a piece of code imports, but for those that are imported for their types alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom):
        yield from {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & (set(FILES) - {"lib"})
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


@cache
def below(module):
    return set(imports(ast.parse(FILES[module].read_text())))


def level(module, above=()):
    """Return on which level a module stands, one above the highest that it imports."""
    assert module not in above, f"a cycle: {' -> '.join([*above, module])}"
    return 1 + max((level(other, (*above, module)) for other in below(module)), default=0)


def test_modules_import_downwards_only_and_stand_on_six_levels():
    levels = {module: level(module) for module in FILES}
    assert max(levels.values()) <= 6, levels


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    for module, path in FILES.items():
        tree = ast.parse(path.read_text())
        names = {node.attr if isinstance(node, ast.Attribute) else node.id for node in ast.walk(tree)
                 if isinstance(node, ast.Attribute | ast.Name)}  # fmt: skip
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        own = {"exec"} if module == "lib.course" else set()  # it runs the solutions of our own notebooks
        assert not names & {"pickle", "read_pickle", "system"}, module
        assert not called & {"torch.load", "eval", "exec"} - own, module
        assert not words & {"trust_remote_code", "allow_pickle", "shell"}, module


@pytest.mark.parametrize("module", FILES)
def test_a_file_is_short_and_says_what_is_public(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= 250, "split it, or make it simpler"
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    nodes = [
        node for scope in (tree, *classes) for node in scope.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    silent = [node.name for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent and ast.get_docstring(tree)
