"""lib/companion/course.py: no solution runs by accident, nbgrader knows every exercise, slides show figures."""

import contextlib
import json
import math
import re

import nbformat
import numpy as np
import papermill
import pytest
from conftest import ROOT

from lib.companion import course, findings

KNOWN = json.loads((ROOT / "lib" / "companion" / "exercises.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place") / "course"
    course.build(folder)
    return folder


def run(exercise, notebooks):
    """Run the cell of an exercise, such as "02-1", after the one that the exercises begin with. Return its answer."""
    (path,) = notebooks.glob(f"{exercise[:2]}_*.ipynb")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (start,) = (cell for cell in cells if "lib.companion.course import" in cell)
    (own,) = (cell for cell in cells if f'check("{exercise[:2]}", {exercise[3:]},' in cell)
    scope = dict[str, object]()
    with contextlib.suppress(AssertionError):  # in a student's copy, for nbgrader
        exec(f"{start}\n{own}", scope)
    return scope[f"answer_{exercise[3:]}"]


@pytest.mark.parametrize("exercise", KNOWN)
def test_the_right_number_is_that_of_the_solution_and_far_from_every_known_mistake(exercise, folder, capsys):
    right, hints = KNOWN[exercise].values()
    solved = run(exercise, folder / "instructor" / "notebooks")
    assert solved == pytest.approx(right, rel=1e-5), "compute it and its hints anew"
    for notebooks in (folder / "student" / "notebooks", ROOT / "notebooks"):
        assert run(exercise, notebooks) is None, "who runs all cells runs no solution"
    told = capsys.readouterr().out.replace(f"Exercise {exercise[3:]}: ", "").splitlines()
    assert told[-3:] == ["right, within 1 %.", "not tried yet.", "not tried yet."]
    for number, hint in hints.items():
        assert not math.isclose(float(number), right, rel_tol=0.02)
        assert course.judge(float(number), right, hints) == f"not yet: {hint}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (0.1239, "right, within 1 %"),
        (np.float32(0.1221), "right, within 1 %"),
        (-0.123, "not yet: the size is right, the sign is wrong"),
        (12.3, "not yet: that is in percent"),
        (8.13, "not yet: that is the reciprocal"),
        (0.456, "not yet: that is the mean"),
        (0.126, "not yet: 0.126 is close, but more than 1 % off"),
        (math.nan, "not yet: nan is more than 1 % off"),
        ("0.123", "give one number, not a value of type str"),
        (np.ones(3), "give one number, not a value of type ndarray"),
    ],
)
def test_an_answer_gets_one_sentence_that_names_the_slip(answer, said):
    assert course.judge(answer, right=0.123, hints={"0.456": "that is the mean"}) == said


def test_both_copies_are_fit_for_nbgrader_papermill_and_the_reader(folder):
    for copy in ("student", "instructor"):
        found = {}
        for path in sorted((folder / copy).glob("notebooks/*.ipynb")):
            book = nbformat.read(path, as_version=4)
            nbformat.validate(book)
            assert "scale" in papermill.inspect_notebook(str(path))
            text = "\n".join(cell.source for cell in book.cells)
            assert ("BEGIN SOLUTION" in text) == (copy == "instructor" and path.stem[:2] in ("01", "02", "03", "04"))
            assert "solution" not in [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
            links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "//" not in link]
            assert [link for link in links if not (path.parent / link).exists()] == []
            for marks in [cell.metadata.nbgrader for cell in book.cells if "nbgrader" in cell.metadata]:
                assert marks.grade and marks.solution and not marks.locked
                found[marks.grade_id.removeprefix("answer-")] = marks.points
        assert found.keys() == KNOWN.keys()
        points = [sum(found[name] for name in found if name.startswith(number)) for number in ("01", "02", "03", "04")]
        assert "{}, {}, {} and {} for the notebooks 01 to 04".format(*points) in (folder / "README.md").read_text()
        assert not (folder / copy / "notebooks" / "README.md").exists(), "it holds the answers"
        assert not {"executed", "benchmark", "__pycache__"} & {one.name for one in (folder / copy).rglob("*")}


def test_the_guide_discusses_every_exercise_and_its_lesson_takes_90_minutes():
    guide = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^- \*\*(\d\d-\d) .+\*\* \(★+, \d+ minutes\)", guide, re.MULTILINE) == [*KNOWN]
    lesson = guide.split("## A lesson of 90 minutes")[1].split("\n## ")[0]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", lesson, re.MULTILINE))) == 90


def test_slides_show_every_figure_in_the_order_of_reading(folder):
    page, known = (folder / "slides" / "index.html").read_text(encoding="utf-8"), findings.claims()
    shown = re.findall(r'src="scenes-\w+-(\d\d_\w+)\.png"', page)
    assert {*shown} >= {path.stem for n in ("01", "02", "03", "04") for path in course.TABLES.glob(f"{n}_*.png")}
    assert page.index("02_wrong_captions") < page.index("03_swap") < page.index("04_frontier") < page.index("01_layers")
    assert all((folder / "slides" / name).is_file() for name in re.findall(r'src="(scenes-[^"]+)"', page))
    assert page.count("Guess") >= 15 and page.count("The answer") >= 15
    tested = [name for name in findings.read_reference(course.TABLES)["finding"] if "withdrawn" not in known[name]]
    assert re.findall(r"\((\d\w)\): <strong>", page) == sorted(tested, key=lambda name: ("23416".index(name[0]), name))


def test_only_an_empty_folder_is_written_to(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty"):
        course.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_course_that_was_interrupted_is_continued_and_a_finished_one_is_not(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(course, "write_slides", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        course.build(tmp_path / "course")
    course.build(tmp_path / "course")
    assert (tmp_path / "course" / "slides" / "index.html").is_file()
    with pytest.raises(ValueError, match="is not empty"):
        course.build(tmp_path / "course")
