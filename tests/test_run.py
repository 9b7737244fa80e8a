"""The runner behind run_all.sh, on small notebooks made here."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import BRIEF, ROOT
from filelock import FileLock

from lib import runs, store
from lib.companion import parse, run

PARAMETERS = 'scale: str = ""\ndataset: str = ""\nseeds: int = 0\nmodels: str = ""'
# What NotebookRun.finish writes, without importing lib
RESULTS = """import json, os
folder = f"{os.environ['CLIPMEM_RUNS']}/results/{dataset}-{scale}"
os.makedirs(folder, exist_ok=True)
row = dict(finding="2a", claim="swapped captions are memorized", verdict="reproduced", value=0.36, low=0.31, high=None)
json.dump(dict(findings=[row]), open(f"{folder}/{NAME}.json", "w"))"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a notebook into a project of its own: parameters, some cells, the last act."""
    project = tmp_path / "a project"
    (project / "notebooks").mkdir(parents=True)
    (project / "figures").symlink_to(ROOT / "figures")
    monkeypatch.setattr(store, "ROOT", project)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a run sets variables for its kernel
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def write(name, *cells):
        new = nbformat.v4
        tagged = new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        code = [new.new_code_cell(cell) for cell in [*cells, f"NAME = {name!r}\n{RESULTS}"]]
        book = new.new_notebook(cells=[new.new_markdown_cell(f"# About {name}"), tagged, *code])
        book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
        nbformat.write(book, project / "notebooks" / f"{name}.ipynb")

    return write


def test_a_notebook_that_does_its_work(write, capfd):
    look = "import os, sys\nprint('seen', seeds, dataset, os.environ['CLIPMEM_PRECISION'], sys.executable)"
    write("02_good", look, "print('\\r[#.] 50 %', end='', flush=True)\nprint('\\r      \\r', end='')")
    assert run.main(["laptop", "--seeds", "4", "--precision", "bf16"]) == 0
    shown, folder = capfd.readouterr().out, store.root() / "executed" / "scenes-laptop"
    assert "[....] 02_good\n[#.] 50 %\n[OK]   02_good done in 0." in shown and "1 of 1 notebooks done" in shown
    assert "2a reproduced" in shown and "differ from the reference: none (of 1)" in shown
    assert f"seen 4 scenes bf16 {sys.executable}" in (folder / "02_good.html").read_text()


def test_a_failing_notebook_says_where_and_why(write, capfd):
    write("01_bad", "def deep():\n    raise ValueError('inverted caption')\ndeep()")
    write("02_never")
    assert run.main(["smoke"]) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad after" in shown and "cell [3]: ValueError: inverted caption" in shown
    assert "deep()" in shown and "\x1b" not in shown and "02_never" not in shown
    assert run.main(["smoke", "--keep-going"]) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad" in shown and "[OK]   02_never" in shown and "1 of 2 notebooks done" in shown


@pytest.mark.parametrize("cell", ["import os\nos._exit(0)", "raise SystemExit(0)"])
def test_a_notebook_that_ends_early_is_not_done(write, capfd, cell):
    write("02_early", cell)
    assert run.main(["smoke"]) == 1
    assert "[FAIL] 02_early" in capfd.readouterr().out


REFUSED = {
    "--only 7": "no notebook is called '7': 01_apples, 02_miscaptioned_memorization, 05_your_own_models",
    "--dataset scense": "data set 'scense' not found",
    "--only 01 --models RN50:openai": "--models and --seen are for notebook 05",
    "--only 05 --publish --seen mine": "Its results are not published",
    "smoke --publish": "smoke decides nothing",
    "laptop --seeds 2 --publish": "2 seeds are too few",
    "paper": "torch finds none: use laptop",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_sentence(write, capfd, words):
    for name in ("01_apples", "02_miscaptioned_memorization", "05_your_own_models"):
        write(name)
    assert run.main(words.split()) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("[FAIL] ") and REFUSED[words] in shown.err and "[....]" not in shown.out


def test_only_and_from_take_a_number_or_a_part_of_the_name(write):
    for name in ("01_apples", "02_pears", "03_plums"):
        write(name)
    names = lambda *words: [path.stem[:2] for path in run.chosen(parse([*words]))]  # noqa: E731
    assert names("--only", "2") == names("--only", "02") == names("--only", "pear") == ["02"]
    assert names("--from", "02") == names("--from", "pears") == ["02", "03"] and names() == ["01", "02", "03"]


def test_force_trains_again_and_paths_become_absolute(write, tmp_path, monkeypatch, capfd):
    write("05_your_own_models", "print(models)")
    runs.run(BRIEF)
    monkeypatch.setattr(runs, "wanted", lambda *_: [BRIEF])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").touch()
    assert run.main(["smoke", "--models", "RN50:a.pt, hf-hub:a/b"]) == 0
    executed = store.root() / "executed" / "scenes-smoke"
    assert f"RN50:{tmp_path}/a.pt,hf-hub:a/b" in (executed / "05_your_own_models.html").read_text()
    before = (runs.run(BRIEF) / "DONE").stat().st_mtime
    with FileLock(executed / ".lock"):
        assert run.main(["smoke", "--force"]) == 1 and (runs.run(BRIEF) / "DONE").stat().st_mtime > before
    assert "another run_all.sh" in capfd.readouterr().err


def test_lab_hands_its_arguments_to_jupyter(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda python, words: called.append(words))
    assert run.main(["--lab", "--no-browser", "--port", "9999"]) == 0
    assert called[0][1:3] == ["-m", "jupyterlab"] and called[0][-3:] == ["--no-browser", "--port", "9999"]


@pytest.mark.parametrize("how, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_a_stopped_runner_takes_its_kernel_with_it(write, tmp_path, how, status):
    mark = tmp_path / "pid"
    write("02_long", f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = f"import sys; from pathlib import Path; from lib import store; store.ROOT = Path({str(store.ROOT)!r})\n"
    code += "import signal; signal.signal(2, signal.default_int_handler)  # ignored after `&`\n"
    code += "from lib.companion import run; sys.exit(run.main(['smoke']))"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: mark.exists() and mark.read_text())
    runner.send_signal(how)
    assert runner.wait() == status
    wait_for(lambda: not os.path.exists(f"/proc/{mark.read_text()}"))


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_under_nohup_a_run_outlives_its_terminal():
    code = "import os, signal; from lib.companion import parse, run; run.set_up(parse([])); os.kill(os.getpid(), 1)"
    for command, ends in ((["nohup"], False), ([], True)):
        done = subprocess.run([*command, sys.executable, "-c", code], cwd=ROOT, capture_output=True)
        assert bool(done.returncode) == ends, done.stderr
