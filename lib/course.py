"""Write a course: the students' copy, the instructors' copy with the key, slides, and the lesson plan.

Students get the project without the answers. nbgrader's own steps clear the solutions, and nbgrader can grade what comes
back. The texts lie in lib/teaching. Needs the course tools of environment.yml; `./run_all.sh --course` installs them.
"""

import json
import re
import shutil
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from jinja2 import Environment, FileSystemLoader
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from lib.answers import ANSWERS, answer, guide, mistakes
from lib.store import ROOT

TEACHING = ANSWERS.parent
SECRETS = ("teaching", "answers.py", "course.py")  # of lib: what a student's copy lacks
STUB = "# Write your code here."
REFERENCE = ROOT / "figures" / "scenes-laptop"


def build(folder: Path) -> None:
    """Write the course into a new or empty folder. Raise AnswersError, OSError."""
    books = {path.name: graded(path) for path in sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))}
    for copy, without in {"student": SECRETS, "instructor": ()}.items():
        ignored = shutil.ignore_patterns("__pycache__", "*.pdf", "executed", "benchmark", *without)
        for name in ("lib", "figures"):
            shutil.copytree(ROOT / name, folder / copy / name, ignore=ignored)
        for name in ("run_all.sh", "environment.yml", "LICENSE"):
            shutil.copy(ROOT / name, folder / copy)
        (folder / copy / "notebooks").mkdir()
        for name, book in books.items():
            nbformat.write(cleared(book) if without else book, folder / copy / "notebooks" / name)
    shutil.copy(TEACHING / "student.md", folder / "student" / "README.md")
    shutil.copy(TEACHING / "nbgrader_config.txt", folder / "instructor" / "nbgrader_config.py")
    shutil.copy(ROOT / "notebooks" / "README.md", folder)
    _write(folder / "instructor" / "README.md", _filled("key.md.j2", exercises=key(books)))
    for exercise in guide():  # the same checks for otter-grader
        case = {"code": f">>> from lib.exercises import judge\n>>> judge({_call(exercise)})[0]\nTrue"}
        test = {"name": exercise, "points": 1, "suites": [{"type": "doctest", "cases": [case]}]}
        _write(folder / "instructor" / "otter" / exercise[:2] / f"q{exercise[3:]}.py", f"OK_FORMAT = True\ntest = {test!r}\n")
    write_slides(folder / "slides", books)
    print(f"{folder}: README.md is the lesson plan. Give away student/ and slides/ only; instructor/ holds the answers.")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _filled(template: str, **values: Any) -> str:
    return Environment(loader=FileSystemLoader(TEACHING), autoescape=False).get_template(template).render(values)


def _call(exercise: str) -> str:
    """Return the arguments of `check` and `judge` for an exercise such as "02-1"."""
    return f'"{exercise[:2]}", {exercise[3:]}, answer_{exercise[3:]}'


def _grading(name: str, **own: Any) -> NotebookNode:
    """Return nbgrader's metadata of a cell that students cannot edit, changed by `own`."""
    told = {"schema_version": 3, "grade": False, "solution": False, "locked": True, "task": False, "grade_id": name}
    return nbformat.from_dict({"nbgrader": told | own})


def graded(path: Path) -> NotebookNode:
    """Return a notebook as nbgrader's source: per exercise a locked question, an answer, and a check worth its stars."""
    book, cells, number = nbformat.read(path, as_version=4), [], 0
    for cell in book.cells:
        if "solution" in cell.metadata.get("tags", []):
            number += 1
            exercise, stars = f"{path.stem[:2]}-{number}", cells[-1].source.splitlines()[0].count("★")
            cell.source, check = cell.source.rsplit("\n", 1)
            hidden = f"from lib.exercises import judge\n\nassert judge({_call(exercise)})[0]"
            check += f"\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
            cells[-1].metadata = _grading(f"question-{exercise}")
            cell.metadata = _grading(f"answer-{exercise}", solution=True, locked=False)
            tested = _grading(f"check-{exercise}", grade=True, points=stars)
            cells += [cell, nbformat.v4.new_code_cell(check, id=f"check-{exercise}", metadata=tested)]
        elif "not for students" not in cell.metadata.get("tags", []):
            cells.append(cell)
    book.cells = cells
    return book


def cleared(book: NotebookNode) -> NotebookNode:
    """Return a student's copy: no solutions, no hidden tests, questions and checks locked."""
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions, LockCells

    book = deepcopy(book)
    for step in (ClearSolutions(code_stub={"python": STUB}), ClearHiddenTests(), LockCells()):
        book, _ = step.preprocess(book, {})
    return book


def key(books: dict[str, NotebookNode]) -> list[dict[str, Any]]:
    """Return what the instructors' page says of each exercise: name, title, what is expected, mistakes, guidance."""
    text = "\n".join(cell.source for book in books.values() for cell in book.cells if cell.cell_type == "markdown")
    titles = re.findall(r"^### \d (★+ .*)$", text, re.MULTILINE)
    pages = []
    for (exercise, about), title in zip(guide().items(), titles, strict=True):
        shown = {hint: f"{x:.4g}:" if np.ndim(x) == 0 else "" for hint, x in mistakes(exercise).items()}
        right = answer(exercise)
        expected = f"{right:.4g}" if np.ndim(right) == 0 else ""
        pages.append(about | {"name": exercise, "title": title, "expected": expected, "wrong": shown})
    return pages


def write_slides(folder: Path, books: dict[str, NotebookNode]) -> None:
    """Write reveal.js slides that need no network: per notebook its question, the guesses, each figure, the verdicts."""
    chapters = []
    for name, book in sorted(books.items(), key=lambda item: (item[0][:2] != "02", item[0])):  # the order of reading
        text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        predict = re.search(r"## Predict\n(.*?)(?=\n#|\Z)", text, re.DOTALL)
        figures = []
        for path in sorted(REFERENCE.glob(f"{name[:2]}_*.json")):
            told = json.loads(path.read_text(encoding="utf-8"))
            title = told.get("title") or path.stem[3:].replace("_", " ").capitalize()
            figures.append({"file": f"{path.stem}.png", "title": title, "footer": told.get("footer", "")})
            (folder / "figures").mkdir(parents=True, exist_ok=True)
            shutil.copy(path.with_suffix(".png"), folder / "figures")
        claims = [c for c in json.loads((REFERENCE / "findings.json").read_text()) if c["notebook"] == name[:-6]]
        told = {"title": text.splitlines()[0].lstrip("# "), "predict": predict and predict[1], "figures": figures}
        chapters += [told | {"claims": claims}] * bool(figures)
    slides = nbformat.v4.new_notebook()
    for source in _filled("slides.md.j2", chapters=chapters).split("\n----\n"):
        kind = "slide" if source.lstrip().startswith("# ") else "subslide"
        slides.cells.append(nbformat.v4.new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}}))
    spec = find_spec("sphinx_revealjs")  # only carries reveal.js
    assert spec and spec.origin, "the course tools of environment.yml are not installed"
    ignored = shutil.ignore_patterns("*.map", "*.esm.js", "*.eot", "*.ttf")
    shutil.copytree(Path(spec.origin).parent / "_static/revealjs/dist", folder / "reveal" / "dist", ignore=ignored)
    exporter = SlidesExporter(raw_template=(TEACHING / "slides.html.j2").read_text(), reveal_url_prefix="reveal")
    page, _ = exporter.from_notebook_node(slides, resources={"metadata": {"name": "What does CLIP memorize?"}})
    _write(folder / "index.html", page)
