"""The notebooks: as committed, and ./run_all.sh smoke on a copy of the project."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from photo_sets import columns, picture, write_parquet

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    """The code cells of a notebook that are not solutions."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [cell for cell in code if "solution" not in cell["metadata"].get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_has_no_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    ran = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert not ran, "committed with outputs"
    assert 10 <= len(code_cells(path)) <= 14 or path.stem == "00_tour"
    assert path.stat().st_size < 60_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_flat_literals_with_a_type_and_help(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for line in "".join(tagged[0]["source"]).splitlines():
        match = re.fullmatch(r"(\w+): (int|str|float|bool) = ([^=|]+?)  # [^=|]{5,}", line)
        assert match, f"expected `name: type = value  # help`, found {line!r}"
        assert type(ast.literal_eval(match.group(3))).__name__ == match.group(2), line


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what git would take from this tree."""
    folder = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def smoke(copy, elsewhere, *words):
    """Run ./run_all.sh smoke of the copy from another folder; what it printed."""
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CLIPMEM_RUNS": str(copy / "runs"), "PYTHONPATH": ""}
    command = [copy / "run_all.sh", "smoke", *words]
    done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(copy):
    """When each run of the store was finished: a second training would change it."""
    return {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("DONE")}


def test_smoke_runs_every_notebook_and_a_second_call_trains_nothing(copy, tmp_path):
    shown = smoke(copy, tmp_path)
    trained = finished(copy)
    assert trained and f"{len(NOTEBOOKS)} of {len(NOTEBOOKS)} notebooks done" in shown
    rows = json.loads((copy / "figures" / "scenes-smoke" / "findings.json").read_text())
    for path in NOTEBOOKS:
        executed = copy / "runs" / "executed" / "scenes-smoke" / path.name
        counts = [cell["execution_count"] for cell in json.loads(executed.read_text())["cells"] if "outputs" in cell]
        assert counts == list(range(1, len(counts) + 1)) and executed.with_suffix(".html").is_file()
        assert 'src="../' not in executed.with_suffix(".html").read_text(), "a picture that is not in the report"
        results = json.loads((copy / "runs" / "results" / "scenes-smoke" / f"{path.stem}.json").read_text())
        assert all((copy / figure).is_file() for figure in results["figures"])
        if path.stem != "00_tour":  # it shows what others found
            assert any(row["notebook"] == path.stem for row in rows) and results["findings"] and results["figures"]
    smoke(copy, tmp_path)
    assert finished(copy) == trained
    for path in NOTEBOOKS:
        log = (copy / "runs" / "executed" / "scenes-smoke" / f"{path.stem}.log").read_text()
        assert "runs are in the store" not in log or "nothing to train" in log


@pytest.mark.parametrize("number", ["01", "04"])
def test_a_reader_s_own_pictures_go_through_the_same_notebooks(copy, tmp_path, number):
    """They take another plan than scenes, classes from the captions' nouns, and probes on labelled sets beside them."""
    mine = write_parquet(tmp_path / "mine.parquet", columns(270))
    for part, count in (("train", 60), ("test", 30)):
        labelled = {"image": [picture(1000 + i) for i in range(count)], "label": [i % 3 for i in range(count)]}
        write_parquet(tmp_path / f"imagenette_{part}.parquet", labelled)
    shown = smoke(copy, tmp_path, "--only", number, "--dataset", mine)
    assert "1 of 1 notebooks done" in shown
    if number == "04":
        rows = json.loads((copy / "figures" / "mine-smoke" / "findings.json").read_text())
        assert any("probe_imagenette" in row["statistic"] for row in rows)
    held = {path.name for path in (copy / "figures" / "mine-smoke").iterdir()}
    assert {"01": "01_which_pairs.csv", "04": "04_removal.csv"}[number] in held
    assert not any("wall" in name for name in held), "pictures of a reader's own are not published"
