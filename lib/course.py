"""The answers to the exercises, and the course of --course. A student's copy lacks this file and teaching/.

What is right comes from the solutions in the notebooks. A known mistake is a solution with one thing changed, as
teaching/answers.toml says, and has a hint. Both are computed from the published tables.

A course holds the students' copy, the instructors' copy with the key, slides, and the lesson plan. nbgrader clears the
solutions, and can grade what comes back. The course tools of environment.yml are installed by `--course`.
"""

import json
import re
import shutil
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from jinja2 import Environment, FileSystemLoader
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from lib.exercises import REACH, TABLES, hashes
from lib.store import ROOT, write_bytes

TEACHING = Path(__file__).with_name("teaching")
BEGIN, END = "### BEGIN SOLUTION\n", "### END SOLUTION\n"
LEFT_OUT = ("__pycache__", "*.pdf", "executed", "benchmark")  # of lib and figures in both copies


@cache
def guide() -> dict[str, dict[str, Any]]:
    """Return answers.toml: exercise ("02-1") -> minutes, difficulty, discussion, mistakes (old, new, hint)."""
    return tomllib.loads((TEACHING / "answers.toml").read_text(encoding="utf-8"))


@cache
def _solutions() -> dict[str, tuple[str, str]]:
    """Return exercise -> the cell that the exercises of its notebook begin with, and its solution."""
    found = {}
    for path in sorted(ROOT.glob("notebooks/[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        start = next((text for text in texts if "from lib.exercises import" in text), "")
        for number, text in enumerate([text for text in texts if BEGIN in text], 1):
            found[f"{path.stem[:2]}-{number}"] = start, text.split(BEGIN)[1].split(END)[0]
    return found


def answer(exercise: str, old: str = "", new: str = "") -> Any:
    """Return what a solution gives, with `old` replaced by `new` in it. Raise ValueError where `old` is not there."""
    start, code = _solutions()[exercise]
    if old not in code:
        raise ValueError(f"{TEACHING}/answers.toml, {exercise}: no solution contains {old!r}; correct it there")
    scope: dict[str, Any] = {}
    exec(f"{start}\n{code.replace(old, new) if old else code}", scope)
    return scope[f"answer_{exercise[3:]}"]


def mistakes(exercise: str) -> dict[str, Any]:
    """Return hint -> what the mistake gives, without those that are too near to what is right or to another one."""
    numbers, kept = [answer(exercise)], {}
    for old, new, hint in guide()[exercise]["mistakes"]:
        wrong = answer(exercise, old, new)
        if np.ndim(wrong) or not any(set(hashes(exercise, wrong)) & set(hashes(exercise, one)) for one in numbers):
            kept[hint] = wrong
            numbers.append(wrong)
    return kept


def exercises_json() -> dict[str, Any]:
    """Return what lib/exercises.json holds: of each number the hash, and of a score per pair how it is judged."""
    found = {name: about["scores"] for name, about in guide().items() if "scores" in about}
    for name in guide().keys() - found.keys():
        known = {hashes(name, wrong)[REACH]: hint for hint, wrong in mistakes(name).items()}
        found[name] = {"right": hashes(name, answer(name))[REACH], "mistakes": known}
    return found


def build(folder: Path) -> None:
    """Write the course into a new or empty folder. Raise StoreError, OSError."""
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions, LockCells

    clearing = (ClearSolutions(code_stub={"python": "# Write your code here."}), ClearHiddenTests(), LockCells())
    paths = sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))
    secrets = ("teaching", "course.py")  # what a student's lib lacks
    for copy, without in {folder / "student": secrets, folder / "instructor": ()}.items():
        for name in ("lib", "figures"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OUT, *without))
        for name in ("run_all.sh", "environment.yml", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        for path in paths:
            book = graded(path)
            for step in clearing if without else ():
                book, _ = step.preprocess(book, {})
            write_bytes(copy / "notebooks" / path.name, nbformat.writes(book).encode())
    shutil.copy(TEACHING / "student.md", folder / "student" / "README.md")
    shutil.copy(TEACHING / "nbgrader_config.txt", folder / "instructor" / "nbgrader_config.py")
    shutil.copy(ROOT / "notebooks" / "README.md", folder)
    text = "\n".join(cell.source for path in paths for cell in graded(path).cells)
    titles = dict(zip(guide(), re.findall(r"^### \d (★.*)$", text, re.MULTILINE), strict=True))
    _fill("key.md.j2", folder / "instructor/README.md", titles=titles, guide=guide(), answer=answer, mistakes=mistakes)
    for name, title in titles.items():
        path = folder / "instructor" / "otter" / name[:2] / f"q{name[3:]}.py"
        _fill("otter.py.j2", path, name=name, points=title.count("★"))
    write_slides(folder / "slides", paths)
    print(f"{folder}: README.md is the lesson plan. Give away student/ and slides/; instructor/ holds the answers.")


def _fill(template: str, path: Path, **values: Any) -> str:
    """Write a filled template of lib/teaching to `path`, and return it."""
    text = Environment(loader=FileSystemLoader(TEACHING)).get_template(template).render(values)
    write_bytes(path, text.encode())
    return text


def _grading(name: str, **own: Any) -> NotebookNode:
    """Return nbgrader's metadata of a cell that students cannot edit, changed by `own`."""
    told = {"schema_version": 3, "grade": False, "solution": False, "locked": True, "task": False, "grade_id": name}
    return nbformat.from_dict({"nbgrader": told | own})


def graded(path: Path) -> NotebookNode:
    """Return a notebook as nbgrader's source: per exercise a locked question, an answer, a check worth its stars."""
    book, lesson = nbformat.read(path, as_version=4), True
    cells: list[NotebookNode] = []
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        lesson = lesson and "from lib.exercises import" not in cell.source
        if lesson and cell.cell_type == "code":
            cell.metadata.tags = [*tags, "otter_ignore"]  # not run when the exercises are graded
        if "solution" in tags:
            title = cells[-1].source.splitlines()[0]  # such as "### 1 ★ · ..."
            name, points = f"{path.stem[:2]}-{title[4]}", title.count("★")
            cell.source, check = cell.source.rsplit("\n", 1)
            test = f"from lib.exercises import judge\n\nassert {check.replace('check', 'judge')}[0]"
            check += f"\n### BEGIN HIDDEN TESTS\n{test}\n### END HIDDEN TESTS"
            tested = _grading(f"check-{name}", grade=True, points=points)
            cells[-1].metadata = _grading(f"question-{name}")
            cell.metadata = _grading(f"answer-{name}", solution=True, locked=False)
            cells += [cell, nbformat.v4.new_code_cell(check, id=f"check-{name}", metadata=tested)]
        elif "not for students" not in tags:
            cells.append(cell)
    book.cells = cells
    return book


def write_slides(folder: Path, notebooks: list[Path]) -> None:
    """Write reveal.js slides that need no network: per notebook its question, guesses, each figure, the verdicts."""
    shutil.copytree(TABLES, folder / "figures", ignore=shutil.ignore_patterns("*.[!p]*", *LEFT_OUT))
    dist = files("sphinx_revealjs") / "_static" / "revealjs" / "dist"  # the package only carries reveal.js
    shutil.copytree(str(dist), folder / "dist", ignore=shutil.ignore_patterns("*.map", "*.esm.js", "*.eot", "*.ttf"))
    found, chapters = json.loads((TABLES / "findings.json").read_text(encoding="utf-8")), []
    for path in sorted(notebooks, key=lambda path: (path.stem[:2] != "02", path)):  # the order of reading
        text = "\n".join(cell.source for cell in graded(path).cells if cell.cell_type == "markdown")
        predict = re.search(r"## Predict\n(.*?)(?=\n#|\Z)", text, re.DOTALL)
        claims = [one for one in found if one["notebook"] == path.stem]
        figures = {p.stem: json.loads(p.read_bytes()) for p in sorted(TABLES.glob(f"{path.stem[:2]}_*.json"))}
        chapter = {"title": text.splitlines()[0].lstrip("# "), "predict": predict and predict[1], "claims": claims}
        chapters += [chapter | {"figures": figures}] * bool(figures)
    slides = nbformat.v4.new_notebook(metadata={"title": "What does CLIP memorize?"})
    for source in _fill("slides.md.j2", folder / "slides.md", chapters=chapters).split("\n----\n"):
        kind = {"slide_type": "slide" if source.lstrip().startswith("# ") else "subslide"}
        slides.cells.append(nbformat.v4.new_markdown_cell(source, metadata={"slideshow": kind}))
    template = (TEACHING / "slides.html.j2").read_text(encoding="utf-8")
    exporter = SlidesExporter(raw_template=template, reveal_url_prefix=".", reveal_theme="white")
    write_bytes(folder / "index.html", exporter.from_notebook_node(slides)[0].encode())
