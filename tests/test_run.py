"""The runner behind run_all.sh, on small notebooks made here."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import nbformat
import papermill
import pytest
from filelock import FileLock

from lib import execute, preflight, run
from lib.execute import Place
from lib.preflight import Check, complaints, given, parse

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = 'scale: str = "smoke"  # size\ndataset: str = "scenes"  # which pairs\nseeds: int = 0  # 0: not given'
RESULTS = """import json, os
from pathlib import Path
folder = Path(os.environ["CLIPMEM_RUNS"], "results", f"{dataset}-{scale}")
folder.mkdir(parents=True, exist_ok=True)
row = dict(finding=2, claim="wrong captions are memorized", verdict="reproduced", statistic="difference", value=0.36,
           low=0.31, high=None, seeds=seeds, notebook=NAME)
done = dict(run_id=os.environ["CLIPMEM_RUN_ID"], notebook=NAME, findings=[row], figures=FIGURES)
figures = Path(PROJECT, "figures", f"{dataset}-{scale}")
figures.mkdir(parents=True, exist_ok=True)
(figures / "findings.json").write_text(json.dumps([row]))
(folder / f"{NAME}.json").write_text(json.dumps(done))"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project with no notebook yet, whose preflight looks at the notebooks only."""
    for name in ("versions", "accelerator", "data_set", "disk", "memory"):
        monkeypatch.setattr(preflight, name, lambda *_, name=name: Check(name, True, "not looked at"))
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as run_all.sh does
    with mock.patch.dict(os.environ):  # a run sets variables for its kernel
        yield Place(tmp_path, tmp_path / "runs", "scenes-smoke")


def write(place, name, *cells, parameters=PARAMETERS, results=True, figures=()):
    """Write a notebook: a title, its parameters, the cells given, and the results file as the last act."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    values = f"NAME, PROJECT, FIGURES = {name!r}, {str(place.project)!r}, {list(figures)!r}"
    last = [f"{values}\n{RESULTS}"] if results else []
    code = [nbformat.v4.new_code_cell(cell) for cell in [*cells, *last]]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# About {name}"), tagged, *code])
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, place.project / "notebooks" / f"{name}.ipynb")


def test_a_notebook_that_does_its_work(place, capfd):
    look = "import os, sys, lib.recipes\nprint('seen', seeds, dataset)\nprint('kernel', sys.executable)"
    write(place, "02_good", look, "os.write(2, b'from outside Python')", figures=["figures/a.png"])
    (place.project / "figures").mkdir()
    (place.project / "figures" / "a.png").write_text("a figure")
    assert run.main(["smoke", "--seeds", "3"], place.project) == 0
    shown = capfd.readouterr().out
    assert "[OK]   02_good  done" in shown
    assert "reproduced                  0.36 [0.31, -]                 3  2: wrong captions are memorized" in shown
    executed = place.runs / "executed" / "scenes-smoke"
    log = (executed / "02_good.log").read_text()
    assert "seen 3 scenes" in log and f"kernel {sys.executable}" in log
    assert "from outside Python" in log and "from outside Python" not in shown
    assert "<html" in (executed / "02_good.html").read_text()
    assert run.main(["smoke", "--list"], place.project) == 0
    shown = capfd.readouterr().out
    assert "About 02_good" in shown and "1 reproduced" in shown and "not run here" not in shown


def test_a_failing_notebook_says_where_why_and_how_to_continue(place, capfd):
    report = "from lib.progress import report\nreport('train f', 1, 4)"
    write(place, "01_bad", report, "def deep():\n    raise ValueError('odd caption')\ndeep()")
    write(place, "02_never")
    assert run.main(["smoke"], place.project) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad" in shown and "phase: train f" in shown and "cell [4]" in shown
    assert "ValueError: odd caption" in shown and "deep()" in shown and "\x1b" not in shown
    assert f"log: {place.runs}/executed/scenes-smoke/01_bad.log" in shown
    assert "continue: ./run_all.sh smoke --from 01\n" in shown
    assert "02_never" not in shown


def test_keep_going_runs_what_comes_after_a_failure(place, capfd):
    write(place, "01_bad", "1 / 0")
    write(place, "02_good")
    assert run.main(["smoke", "--keep-going"], place.project) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad" in shown and "[OK]   02_good" in shown and "1 of 2 notebooks done" in shown
    assert "wrong captions are memorized" in shown


@pytest.mark.parametrize(
    "cell, why",
    [
        ("import os\nos._exit(0)", "the kernel died"),
        ("raise SystemExit(0)", "it stopped at cell [3] of 5 without an error"),
        ("import errno\nraise OSError(errno.ENOSPC, 'No space left on device')", "the disk is full"),
    ],
)
def test_a_notebook_that_ends_early_is_not_done(place, capfd, cell, why):
    write(place, "02_early", cell, "after = 1")
    assert run.main(["smoke"], place.project) == 1
    assert why in capfd.readouterr().out


def test_a_forgotten_results_file_one_of_an_earlier_run_and_a_missing_figure(place):
    cell = {"cell_type": "code", "execution_count": 1, "source": "a = 1"}
    executed, results, notebook = place.file(Path("02_x"), ".ipynb"), place.results(Path("02_x")), Path("02_x.ipynb")
    executed.parent.mkdir(parents=True)
    results.parent.mkdir(parents=True)
    executed.write_text(json.dumps({"cells": [cell]}))
    assert "did not write its results file" in execute.shortcomings(place, notebook, "new")[0]
    results.write_text(json.dumps({"run_id": "old", "findings": [], "figures": []}))
    assert "from an earlier run" in execute.shortcomings(place, notebook, "new")[0]
    results.write_text(json.dumps({"run_id": "new", "findings": [], "figures": ["figures/b.png"]}))
    assert execute.shortcomings(place, notebook, "new") == ["the figure figures/b.png is declared, and not there"]
    executed.write_text(json.dumps({"cells": [cell, {**cell, "execution_count": None}]}))
    assert "stopped at cell [1] of 2" in execute.shortcomings(place, notebook, "new")[0]


def test_parameters_are_strict(place, capfd):
    write(place, "02_odd", parameters='scale: str = "smoke"\ndatset: str = "scenes"')
    assert run.main(["smoke"], place.project) == 2
    shown = capfd.readouterr().out
    assert "[FAIL] notebooks" in shown and "no parameter 'dataset'" in shown and "Did you mean datset?" in shown
    assert not (place.runs / "executed").exists()
    write(place, "02_odd")
    notebook = place.project / "notebooks" / "02_odd.ipynb"
    assert "Did you mean seeds?" in complaints(notebook, {"seed": 3})[0]
    assert complaints(notebook, {"seeds": "3"}) == ["02_odd.ipynb: seeds is int there, and was given '3'."]
    notebook.write_text("{")
    assert "cannot be read" in preflight.parameters(parse(["smoke"]), [notebook]).text


def test_seeds_and_force_go_only_to_notebooks_that_take_them(place):
    write(place, "00_tour", parameters='scale: str = "smoke"\ndataset: str = "scenes"')
    write(place, "02_all")
    options, folder = parse(["smoke", "--seeds", "2", "--force"]), place.project / "notebooks"
    assert given(options, folder / "00_tour.ipynb") == {"scale": "smoke", "dataset": "scenes"}
    assert given(options, folder / "02_all.ipynb") == {"scale": "smoke", "dataset": "scenes", "seeds": 2}


def test_an_unknown_data_set_is_refused_before_anything_runs(place, monkeypatch, capfd):
    monkeypatch.undo()
    write(place, "02_good")
    assert run.main(["smoke", "--dataset", "scense"], place.project) == 2
    shown = capfd.readouterr().out
    assert "[FAIL] data set" in shown and "scense" in shown and "Traceback" not in shown


def test_only_from_and_a_notebook_that_is_not_there(place, capfd):
    for name in ("01_a", "02_b", "03_c"):
        write(place, name)
    names = lambda *words: [path.stem for path in run.chosen(place.project, parse(words))]  # noqa: E731
    assert names("--only", "02") == ["02_b"] and names("--from", "02") == ["02_b", "03_c"] and len(names()) == 3
    assert run.main(["--only", "07"], place.project) == 2
    assert "01_a, 02_b, 03_c" in capfd.readouterr().err


def test_a_full_disk_is_one_plain_line(place, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(place, "02_good")
    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert run.main(["smoke"], place.project) == 1
    assert "the disk is full. Free some space" in capfd.readouterr().out
    monkeypatch.setattr(run, "execute", full)
    assert run.main(["smoke"], place.project) == 1
    assert "No space left on device. What is trained stays" in capfd.readouterr().err


def test_two_at_once_do_not_mix_their_files(place, capfd):
    write(place, "02_good")
    folder = place.runs / "executed" / "scenes-smoke"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run.main(["smoke"], place.project) == 1
    assert "another run_all.sh" in capfd.readouterr().err


def alive(pid):
    """Whether a process still runs (a zombie does not)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_runner_takes_its_kernel_with_it(place, tmp_path, how):
    pid_file = tmp_path / "pid"
    write(place, "02_long", f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))", "time.sleep(60)")
    code = f"""import signal
from pathlib import Path
from lib import preflight, run
signal.signal(signal.SIGTERM, run._interrupt)
place = run.Place(Path({str(place.project)!r}), Path({str(place.runs)!r}), "scenes-smoke")
place.file(Path("02_long"), ".log").parent.mkdir(parents=True)
run.run_one(place, preflight.parse(["smoke"]), place.project / "notebooks" / "02_long.ipynb")"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    runner.send_signal(how)
    runner.wait()
    wait_for(lambda: not alive(int(pid_file.read_text())))


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
