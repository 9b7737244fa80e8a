"""./run_all.sh --course: what students get runs by itself and holds no answer; instructors get the key; slides open."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import papermill
import pytest
from conftest import ROOT

from lib import exercises, run
from lib.course import answer, guide, mistakes

pytest.importorskip("nbgrader", reason="nbgrader is not installed: ./run_all.sh --test installs it")
pytest.importorskip("sphinx_revealjs", reason="sphinx-revealjs is not installed: ./run_all.sh --test installs it")
NUMBERS = {name: answer(name) for name, about in guide().items() if "scores" not in about}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place") / "course"
    assert run.main(["--course", str(folder)]) == 0
    return folder


def books(folder):
    return {path: nbformat.read(path, as_version=4) for path in sorted(folder.glob("notebooks/*.ipynb"))}


def graded(book, part):
    """Return the cells of a part: question, answer or check."""
    return [c for c in book.cells if c.metadata.get("nbgrader", {}).get("grade_id", "").startswith(part)]


def executed_exercises(path):
    """Run only the exercises of a notebook, with the lib of its own folder; return what the cells printed."""
    book = nbformat.read(path, as_version=4)
    skipped = [cell for cell in book.cells if "otter_ignore" in cell.metadata.get("tags", [])]
    book.cells = [cell for cell in book.cells if cell not in skipped]
    target = path.with_suffix(".exercises.ipynb")
    nbformat.write(book, target)
    environ = {**os.environ, "PYTHONPATH": str(path.parent.parent)}
    words = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(target)]
    done = subprocess.run(words, env=environ, cwd=path.parent, capture_output=True, text=True)
    book = nbformat.read(target, as_version=4)
    target.unlink()
    assert done.returncode == 0, done.stderr[-3000:]
    return [output.text for cell in book.cells for output in cell.get("outputs", []) if output.output_type == "stream"]


def test_the_solutions_in_the_notebooks_are_right_and_the_untouched_copy_passes_nothing(course):
    name = "02_miscaptioned_memorization.ipynb"
    solved = executed_exercises(course / "instructor" / "notebooks" / name)
    untouched = executed_exercises(course / "student" / "notebooks" / name)
    assert [line.split(": ")[1].startswith("right") for line in solved] == [True] * 4
    assert untouched == [f"Exercise {number}: not tried yet.\n" for number in (1, 2, 3, 4)]


def test_students_get_no_solution_and_no_number(course):
    student = course / "student"
    names = {path.name for path in student.rglob("*")}
    assert not names & {"answers.toml", "teaching", "course.py", "executed", "key.md.j2"}
    for path in student.rglob("*"):
        if path.suffix in (".py", ".json", ".ipynb", ".md", ".sh", ".yml", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert not re.search("BEGIN SOLUTION|BEGIN HIDDEN|not for students", text), path
            if text.count("\n") > 10_000:
                continue  # a table with a row per seed and pair has any number by chance
            decimals = {f"{float(one):.6g}" for one in re.findall(r"\d*\.\d{3,}", text)}
            for name, number in NUMBERS.items():
                shown = f"{abs(number):.6g}"  # shorter ones occur in large tables by chance
                assert len(shown) < 7 or shown not in decimals, (path, name)
                brief = f"{abs(number):.4g}".lstrip("0")
                assert path.suffix in (".csv", ".json") or len(brief) < 5 or brief not in text, (path, name)
    for path, book in books(student).items():
        for cell in graded(book, "answer"):
            assert re.fullmatch(r"answer_\d = None  # .+\n# Write your code here\.", cell.source), (path, cell.source)
        for cell in graded(book, "check"):
            assert re.fullmatch(r'check\("\d\d", \d, answer_\d\)', cell.source)


def test_copies_are_fit_for_nbgrader_papermill_and_the_reader(course):
    for copy in ("student", "instructor"):
        for path, book in books(course / copy).items():
            parts = {part: graded(book, part) for part in ("question", "answer", "check")}
            count = sum(name.startswith(path.stem[:2]) for name in guide())
            assert [len(cells) for cells in parts.values()] == [count] * 3
            assert [cell.metadata.nbgrader.points for cell in parts["check"]] == _stars(parts)
            locked = [not cell.metadata.get("editable", True) for part in ("question", "check") for cell in parts[part]]
            assert all(locked) == (copy == "student" or not locked)
            assert "scale" in papermill.inspect_notebook(str(path)), "the parameters tag is lost"
            text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
            links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
            assert links and all((path.parent / link).exists() for link in links), (path, links)
            assert count == 0 or re.search(r"!\[.+\]\(\.\./figures/", text.split("## Exercises")[1])
    assert "nbgrader_config.py" in os.listdir(course / "instructor")


def _stars(parts):
    return [cell.source.splitlines()[0].count("★") for cell in parts["question"]]


def test_the_key_names_every_number_and_mistake_and_the_lesson_plan_its_points(course):
    key = (course / "instructor" / "README.md").read_text()
    for name, about in guide().items():
        assert f"## {name} ★" in key and about["discussion"] in key
        assert all(hint.strip() in key for hint in mistakes(name))
        right = answer(name)
        assert np.ndim(right) or f"**Expected:** {right:.4g}" in key
    plan = (course / "README.md").read_text()
    points = [sum(_stars({"question": graded(book, "question")})) for book in books(course / "student").values()]
    assert "{}, {}, {} and {} for the notebooks 01 to 04".format(*points[1:]) in plan
    table = plan.split("## A lesson of 90 minutes")[1].split("\n## ")[0]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == 90


def test_the_checks_for_otter_are_the_same(course):
    for name, right in NUMBERS.items():
        scope = {}
        exec((course / "instructor" / "otter" / name[:2] / f"q{name[3:]}.py").read_text(), scope)
        code = scope["test"]["suites"][0]["cases"][0]["code"]
        call = code.split(">>> ")[2].split("\n")[0]
        assert eval(call, {"judge": exercises.judge, f"answer_{name[3:]}": right}) is True


def test_slides_show_each_figure_and_ask_no_network(course):
    page = (course / "slides" / "index.html").read_text()
    figures = {path.stem for path in (ROOT / "figures" / "scenes-laptop").glob("0[1-9]_*.png")}
    shown = set(re.findall(r'src="figures/(\w+)\.png"', page))
    assert shown == figures and all((course / "slides" / "figures" / f"{name}.png").is_file() for name in shown)
    assert not re.search(r'(src|href)="(https?:)?//', page) and "@import" not in page
    for local in re.findall(r'(?:src|href)="(\./[^"]+|dist[^"]+)"', page):
        assert (course / "slides" / local).is_file(), local


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver: install chromium-driver")
def test_slides_open_in_a_browser_without_an_error_or_a_request(course, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{word}")
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get((course / "slides" / "index.html").as_uri())
        total = browser.execute_script("return Reveal.getTotalSlides()")
        assert total > len(list((course / "slides" / "figures").glob("*.png")))
        browser.execute_script("Reveal.next()")
        assert not browser.get_log("browser")
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
        assert urls and not [url for url in urls if url.startswith(("http", "ws"))]
        tall = "return [...document.querySelectorAll('section:not(.stack)')].filter(s => s.scrollHeight > 760).length"
        assert browser.execute_script(tall) == 0, "a slide is higher than the screen"
    finally:
        browser.quit()


def test_a_folder_that_is_not_empty_is_refused(course, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--course", str(course)])
    assert ended.value.code == 2 and "exists and is not empty; name a new folder" in capsys.readouterr().err
    environ = {**os.environ, "PYTHONPATH": str(course / "student")}
    words = [sys.executable, "-P", "-m", "lib.run", "--course", "x"]
    done = subprocess.run(words, cwd="/", env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "a student's copy cannot make a course" in done.stderr
