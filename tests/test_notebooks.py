"""The notebooks as committed, and ./run_all.sh smoke in a copy of the project: all of them, in order, in one store."""

import ast
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT, commit_project, copy_project
from test_data import columns, write_parquet

from lib.companion import findings

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@each_notebook
def test_a_committed_notebook_has_no_outputs_and_short_lines(path):
    code = cells_of(path, "code")
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]], "committed with outputs"
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines()]
    assert not [line for line in lines if len(line) > 100] and max(len(cell["source"]) for cell in code) <= 30
    subprocess.run([sys.executable, "-m", "ruff", "check", "-q", path], cwd=ROOT, check=True)


@each_notebook
def test_parameters_are_flat_literals_with_a_type_and_help(path):
    (cell,) = [cell for cell in cells_of(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    for line in "".join(cell["source"]).splitlines():
        match = re.fullmatch(r"(\w+): (int|str|float|bool) = ([^=|]+?)  # [^=|]{5,}", line)
        assert match, f"expected `name: type = value  # help`, found {line!r}"
        assert type(ast.literal_eval(match.group(3))).__name__ == match.group(2), line


@each_notebook
def test_the_title_is_a_question_links_lead_somewhere_and_text_leaves_results_to_the_cells(path):
    text = "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    assert "?" in text.splitlines()[0] and not re.search(r"\b[Ww]e found\b|\bour (reference )?runs? (show|found)", text)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links and all((path.parent / link).exists() for link in links), links


@each_notebook
def test_a_notebook_that_is_started_elsewhere_says_what_to_do(path, tmp_path):
    (setup,) = ["".join(one["source"]) for one in cells_of(path, "code") if "sys.path[:0]" in "".join(one["source"])]
    done = subprocess.run([sys.executable, "-c", setup], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.endswith("start in the project's folder, or give papermill --cwd and its notebooks/\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a copy of what git would take from this tree, itself under git, in a folder with an unusual name."""
    folder = copy_project(tmp_path_factory.mktemp("a {clone}"))
    commit_project(folder)
    return folder


def smoke(clone, elsewhere, *words):
    """Run smoke in the copy, from another folder, with two seeds; return what it printed. Git sees no change."""
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CLIPMEM_RUNS": str(clone / "runs"), "PYTHONPATH": ""}
    command = [clone / "run_all.sh", "smoke", "--seeds", "2", *words]
    done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout
    assert changed == "", "a run must not touch what is committed"
    return done.stdout


def test_smoke_runs_every_notebook_and_trains_what_is_planned_once(clone, tmp_path):
    shown, found = smoke(clone, tmp_path), []
    assert f"{len(NOTEBOOKS)} of {len(NOTEBOOKS)} notebooks done" in shown
    results, executed = clone / "runs" / "results" / "scenes-smoke", clone / "runs" / "executed" / "scenes-smoke"
    for path in NOTEBOOKS:
        counts = [cell["execution_count"] for cell in cells_of(executed / path.name, "code")]
        assert counts == list(range(1, len(counts) + 1))
        shown_there = re.findall(r'<img [^>]*?src="file://([^"]+)"', (executed / f"{path.stem}.html").read_text())
        assert shown_there and all(Path(unquote(picture)).is_file() for picture in shown_there), "the sketches"
        record = json.loads((results / f"{path.stem}.json").read_text())
        assert bool(record["figures"]) == (path.stem != "00_tour"), "the tour shows what the others found"
        assert all((results / f"{name}.png").is_file() for name in record["figures"])
        found += record["findings"]
    tested = {name for name, claim in findings.claims().items() if "withdrawn" not in claim}
    assert {one["finding"] for one in found} == tested and {one["verdict"] for one in found} == {"not judged"}
    trained = len([*(clone / "runs" / "run").rglob("DONE")])
    assert f"{trained} models, 0 to train" in smoke(clone, tmp_path, "--share", "1/1")


def published():
    """Return the scale and the stem of every notebook whose scores of scenes are published."""
    for index in sorted(ROOT.glob("figures/scenes-*/scores/index.json")):
        for stem in sorted({model["notebook"] for model in json.loads(index.read_text())["models"]}):
            yield index.parent.parent.name.removeprefix("scenes-"), stem


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute the notebooks of `published`, two at once; return a function that waits for one, and gives its store."""

    def execute(scale, stem):
        folder = tmp_path_factory.mktemp(stem)
        environ = {**os.environ, "CLIPMEM_RUNS": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "-p", "scale", scale]
        command += [ROOT / "notebooks" / f"{stem}.ipynb", folder / "executed.ipynb"]
        subprocess.run(command, cwd=ROOT / "notebooks", env=environ, check=True, capture_output=True)
        return folder

    with ThreadPoolExecutor(2) as pool:
        begun = {one: pool.submit(execute, *one) for one in published()}
        yield lambda *one: begun[one].result()


@pytest.mark.parametrize(("scale", "stem"), published())
def test_published_scores_give_every_figure_and_the_published_verdicts_without_training(scale, stem, executed):
    runs, folder = executed(scale, stem), ROOT / "figures" / f"scenes-{scale}"
    assert not (runs / "run").exists() and not (runs / "data").exists(), "nothing is trained"
    there = {row["finding"]: row for row in json.loads((folder / "findings.json").read_text())}
    record = json.loads((runs / "published" / folder.name / f"{stem}.json").read_text())
    assert {*record["figures"]} == {path.stem for path in folder.glob(f"{stem[:2]}_*.png")}
    assert {row["finding"] for row in record["findings"]} == {n for n, row in there.items() if row["notebook"] == stem}
    for row in record["findings"]:
        assert row["verdict"] == there[row["finding"]]["verdict"], row["finding"]
        numbers = [[one[name] for name in ("value", "low", "high")] for one in (row, there[row["finding"]])]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-3, nan_ok=True), row["finding"]


@pytest.mark.parametrize(("number", "private"), [("1", {"01_examples.png"}), ("mitigation", set())])
def test_a_readers_own_images_with_columns_of_their_own_go_through_the_same_notebooks(clone, tmp_path, number, private):
    made = columns(400)
    mine = {"photo": made["image"], "sentences": made["captions"], "scene": range(400)}
    mine |= {"label": [i % 3 for i in range(400)]} if number == "1" else {}  # without any, utility is retrieval
    path = write_parquet(tmp_path / "my photos.parquet", mine)
    named = ["--image", "photo", "--captions", "sentences"] if number == "1" else []  # both are found, too
    shown = smoke(clone, tmp_path, "--only", number, "--dataset", path, *named)
    assert f"{path}: 400 pictures, 2 captions each, the first: 'a photo of a dog near number 0'" in shown
    name = f"{findings.slug(path)}-smoke"
    folders = (clone / "runs" / of / name for of in ("private", "results"))
    hidden, shown = ({file.name for file in folder.glob("*.png")} for folder in folders)
    assert hidden == private and shown and not hidden & shown, "others' pictures are not published"
