"""How lib/ is built: two rooms of a fixed size, imports in one direction, a docstring on all that is public."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

SCIENCE, COMPANION = (sorted((ROOT / folder).glob("*.py")) for folder in ("lib", "lib/companion"))
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in [*SCIENCE, *COMPANION]}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
HIGHEST = 5  # level
LIMITS = {"lib/*.py": 3520, "lib/companion/*.py": 1370, "lib/**/*.py": 4690, "tests/*.py": 4400, "run_all.sh": 60}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("pattern", LIMITS)
def test_nothing_grows_beyond_its_limit(pattern):
    assert sum(map(lines, ROOT.glob(pattern))) <= LIMITS[pattern]


def test_there_are_no_more_files_and_no_other_shell_script():
    assert len(list(ROOT.glob("lib/**/*.py"))) == len(FILES) <= 28
    assert [path.name for path in ROOT.glob("**/*.sh") if ".venv" not in path.parts] == ["run_all.sh"]


@cache
def imports(module: str) -> set[str]:
    """Return the modules of lib that a module imports, also inside functions, and for types alone."""
    nodes = list(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))
    found = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    for node in [node for node in nodes if isinstance(node, ast.ImportFrom)]:
        assert node.level == 0, f"{module}: name the module in full"
        found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} - {"lib"}
    return found & FILES.keys() - {module}


def level(module: str, above: tuple[str, ...] = ()) -> int:
    """Return the level of a module, one above the highest that it imports."""
    assert module not in above, f"a cycle: {' -> '.join([*above, module])}"
    return 1 + max((level(other, (*above, module)) for other in imports(module)), default=0)


def test_modules_import_downwards_and_only_notebooks_import_the_highest():
    levels = {module: level(module) for module in FILES}
    assert max(levels.values()) <= HIGHEST, levels
    for module in FILES:
        assert not {other for other in imports(module) if levels[other] == HIGHEST}, module
        if not module.startswith("lib.companion"):
            assert not {other for other in imports(module) if other.startswith("lib.companion")}, module


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_unpickled_no_foreign_code_is_run_and_all_that_is_public_says_what_it_is(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert getattr(node, "attr", getattr(node, "id", "")) not in {"pickle", "read_pickle", "system"}, module
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in {"eval", "exec"} and not {"trust_remote_code", "allow_pickle", "shell"} & given.keys()
            assert called != "torch.load" or given["weights_only"] == "True"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    defined = [node for scope in (tree, *classes) for node in scope.body if hasattr(node, "name")]
    silent = [one.name for one in defined if not one.name.startswith("_") and not ast.get_docstring(one)]
    assert not silent and ast.get_docstring(tree)


def test_the_readme_of_lib_lists_every_file_by_its_first_line():
    text = (ROOT / "lib" / "README.md").read_text(encoding="utf-8")
    for module, path in FILES.items():
        first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        assert module == "lib" or re.search(rf"{path.name} +{re.escape(first)}\n", text), module
