"""The notebooks as committed, and ./run_all.sh smoke in a copy of the project."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, copy_project
from photo_sets import columns, write_parquet

from lib.recipes import slug

MODELS = 130  # that all notebooks train with two seeds
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@each_notebook
def test_a_committed_notebook_has_no_outputs_and_short_cells(path):
    code = cells_of(path, "code")
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]], "committed with outputs"
    assert max(len(cell["source"]) for cell in code) <= 30
    assert path.stat().st_size < 60_000


@each_notebook
def test_parameters_are_flat_literals_with_a_type_and_help(path):
    tagged = [cell for cell in cells_of(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for line in "".join(tagged[0]["source"]).splitlines():
        match = re.fullmatch(r"(\w+): (int|str|float|bool) = ([^=|]+?)  # [^=|]{5,}", line)
        assert match, f"expected `name: type = value  # help`, found {line!r}"
        assert type(ast.literal_eval(match.group(3))).__name__ == match.group(2), line


@each_notebook
def test_the_title_is_a_question_and_links_lead_somewhere(path):
    text = "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    assert "?" in text.splitlines()[0]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links and all((path.parent / link).exists() for link in links), links


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a copy of what git would take from this tree, itself under git."""
    folder = copy_project(tmp_path_factory.mktemp("clone"))
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "copy"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def smoke(clone, elsewhere, *words):
    """Run ./run_all.sh smoke of the copy from another folder; return what it printed."""
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CLIPMEM_RUNS": str(clone / "runs"), "PYTHONPATH": ""}
    command = [clone / "run_all.sh", "smoke", *words]
    done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(clone):
    """Return when each run of the store was finished: a second training would change it."""
    return {path: path.stat().st_mtime_ns for path in (clone / "runs" / "run").rglob("DONE")}


def changed(clone):
    """Return what git sees as changed."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout


def test_smoke_runs_every_notebook_touches_no_reference_and_a_second_call_trains_nothing(clone, tmp_path):
    shown = smoke(clone, tmp_path, "--seeds", "2")
    trained = finished(clone)
    assert len(trained) == MODELS and f"{len(NOTEBOOKS)} of {len(NOTEBOOKS)} notebooks done" in shown
    assert f"{MODELS} models, 0 in the store" in shown and "nothing is decided" in shown and "file://" in shown
    assert "reproduced" not in shown, "smoke decides nothing"
    assert changed(clone) == "", "a run must not touch what is committed"
    results = clone / "runs" / "results" / "scenes-smoke"
    for path in NOTEBOOKS:
        executed = clone / "runs" / "executed" / "scenes-smoke" / path.name
        counts = [cell["execution_count"] for cell in cells_of(executed, "code")]
        assert counts == list(range(1, len(counts) + 1))
        assert "jupyter.widget" not in executed.read_text(), "a slider that nobody can move"
        page = (clone / "runs" / "report" / "scenes-smoke" / f"{path.stem}.html").read_text()
        assert 'src="../' not in page, "a picture that is not in the report"
        assert "<code>\\" not in page, "an equation that does not become MathML"
        record = json.loads((results / f"{path.stem}.json").read_text())
        if path.stem == "05_your_own_models":  # it claims nothing
            assert record["figures"] == ["05_membership", "05_wall", "05_one_model"]
        elif path.stem != "00_tour":  # the tour shows what the others found
            assert record["findings"] and record["figures"] and 'class="banner"' in page
            assert {entry["verdict"] for entry in record["findings"]} == {"not judged"}
        assert all((results / f"{figure}.png").is_file() for figure in record["figures"])
    again = smoke(clone, tmp_path, "--seeds", "2", "--only", "02")
    assert re.search(r" (\d+) models, \1 in the store", again) and finished(clone) == trained


@pytest.mark.parametrize(
    ("number", "expected"),
    [("1", "01_which_pairs"), ("mitigation", "04_removal"), ("5", "05_membership"), ("6", "06_mitigations")],
)
def test_a_readers_own_images_with_columns_of_their_own_go_through_the_same_notebooks(
    clone, tmp_path, number, expected
):
    made = columns(400)
    mine = {"photo": made["image"], "sentences": made["captions"], "label": [i % 3 for i in range(400)]}
    if expected in ("04_removal", "06_mitigations"):
        del mine["label"]  # no classes and no labelled sets: utility is retrieval then
    path = write_parquet(tmp_path / "my photos.parquet", mine)
    named = ["--image", "photo", "--captions", "sentences", "--seeds", "2"]
    shown = smoke(clone, tmp_path, "--only", number, "--dataset", path, *named)
    assert "1 of 1 notebooks done" in shown and changed(clone) == ""
    folder = clone / "runs" / "results" / f"{slug(path)}-smoke"
    held = {file.name for file in folder.iterdir()}
    assert f"{expected}.csv" in held and not any("wall" in name for name in held), "others' pictures are not published"
