"""The runner behind run_all.sh, on small notebooks made here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from filelock import FileLock

from lib import data, execute, findings, report, run, study
from lib.captions import DataError
from lib.run import parse

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = (
    'scale: str = "smoke"  # size\ndataset: str = "scenes"\nseeds: int = 0  # 0: not given\nforce: bool = False'
)
# What study.finish writes, without the seconds that it takes to import lib
RESULTS = """import json, os
from pathlib import Path
folder = Path(os.environ["CLIPMEM_RUNS"], "results", f"{dataset}-{scale}")
folder.mkdir(parents=True, exist_ok=True)
where = dict(seeds=seeds, dataset=dataset, scale=scale, notebook=NAME, commit="abc")
row = dict(finding="2a", claim="swapped captions are memorized", verdict="reproduced", statistic="difference",
           value=0.36, low=0.31, high=None, p=0.01, detectable=0.1, reason="as told",
           runs="", claims_commit="", **where)
done = dict(run_id=os.environ["CLIPMEM_RUN_ID"], notebook=NAME, about=where, findings=[row], figures=FIGURES)
(folder / f"{NAME}.json").write_text(json.dumps(done))"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with no notebook yet, in a folder with a difficult name; data and costs are not looked at."""
    monkeypatch.setattr(data, "check", lambda *_: "data not looked at")
    monkeypatch.setattr(study, "cost", lambda stems, *_: [(stem, 3, 2, 600.0) for stem in stems])
    folder = tmp_path / "a {project}"
    (folder / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(findings, "ROOT", folder)
    with mock.patch.dict(os.environ, CLIPMEM_RUNS=str(folder / "runs")):  # a run sets variables for its kernel
        yield folder
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def write(project, name, *cells, parameters=PARAMETERS, results=True, figures=()):
    """Write a notebook: a title, its parameters, the cells given, and the results file as the last act."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    last = [f"NAME, FIGURES = {name!r}, {list(figures)!r}\n{RESULTS}"] if results else []
    code = [nbformat.v4.new_code_cell(cell) for cell in [*cells, *last]]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# About {name}"), tagged, *code])
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, project / "notebooks" / f"{name}.ipynb")
    return project / "notebooks" / f"{name}.ipynb"


def executed(project, name, scale="smoke"):
    return project / "runs" / "executed" / f"scenes-{scale}" / name


def test_a_notebook_that_does_its_work(project, capfd):
    look = "import os, sys\nprint('seen', seeds, dataset, os.environ['CLIPMEM_LATER'], os.environ['CLIPMEM_PRECISION'])"
    look += "\nprint('kernel', sys.executable)"
    progress = "print('\\r[....] training: 50 %', end='')\nprint('\\r  \\r', end='')"
    write(project, "02_good", look, progress, "os.write(2, b'from outside Python')", figures=["a"])
    write(project, "03_good", "seeds = 1", parameters='scale: str = "smoke"\ndataset: str = "scenes"')
    for folder in ("runs/results/scenes-laptop", "figures/scenes-laptop"):
        (project / folder).mkdir(parents=True)
    for ending, text in {".png": "a figure", ".pdf": "a figure", ".csv": "a table", ".json": '{"figure": "a"}'}.items():
        (project / f"runs/results/scenes-laptop/a{ending}").write_text(text)
    assert run.main(["laptop", "--seeds", "4", "--precision", "bf16"], project) == 0
    shown, log = capfd.readouterr().out, executed(project, "02_good.log", "laptop").read_text()
    assert "2 notebooks, 6 models, 2 in the store, about 20 minutes on this machine" in shown
    assert "[OK]   02_good  done in" in shown and "\n[....] training: 50 %\n" in shown
    assert "reproduced  0.360 [0.310, -]          2a swapped captions are memorized (as told)" in shown
    assert "Not compared with the reference" in shown and "findings.json is missing" in shown
    assert "seen 4 scenes 600 bf16" in log and f"kernel {sys.executable}" in log
    assert "from outside Python" in log and "from outside Python" not in shown
    page = (project / "runs/report/scenes-laptop/02_good.html").read_text()
    assert "seen 4 scenes" in page and "[....]" not in page.split("training")[-1]
    link = re.search(r"Report: (file:///\S+index.html)", shown)[1]
    assert "%7Bproject%7D" in link and '"02_good.html"' in Path(unquote(urlsplit(link).path)).read_text()
    book = json.loads((project / "runs/results/scenes-laptop/02_good.json").read_text())
    (project / "figures/scenes-laptop/findings.json").write_text(json.dumps(book["findings"]))
    assert run.main(["laptop", "--list"], project) == 0
    shown = capfd.readouterr().out
    assert "02_good  About 02_good\n    here: run 2" in shown and "committed: 1 reproduced" in shown


def test_smoke_decides_nothing(project, capfd):
    write(project, "02_good")
    assert run.main(["smoke"], project) == 0
    shown = capfd.readouterr().out
    assert "smoke shows that the machinery works, and nothing is decided" in shown and "reproduced" not in shown
    assert run.main(["smoke", "--publish"], project) == 2 and "smoke decides nothing" in capfd.readouterr().err


def test_a_failing_notebook_says_where_why_and_how_to_continue(project, capfd):
    write(project, "01_bad", "def deep():\n    raise ValueError('inverted caption')\ndeep()")
    write(project, "02_never")
    assert run.main(["smoke"], project) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad  after" in shown and "cell [3]: ValueError: inverted caption" in shown
    assert "deep()" in shown and "\x1b" not in shown and f"log: {executed(project, '01_bad.log')}" in shown
    assert "continue: ./run_all.sh smoke --from 01\n" in shown and "02_never" not in shown
    assert run.main(["smoke", "--keep-going"], project) == 1
    shown = capfd.readouterr().out
    assert "[FAIL] 01_bad" in shown and "[OK]   02_never" in shown and "1 of 2 notebooks done" in shown


EARLY = {
    "import os\nos._exit(0)": "the kernel died",
    "raise SystemExit(0)": "it stopped at cell [3] of 5 without an error",
    "raise OSError(28, 'No space left on device')": "OSError: [Errno 28] No space left on device",
}


@pytest.mark.parametrize("cell", EARLY)
def test_a_notebook_that_ends_early_is_not_done(project, capfd, cell):
    write(project, "02_early", cell, "after = 1")
    assert run.main(["smoke"], project) == 1
    assert EARLY[cell] in capfd.readouterr().out


def test_a_notebook_is_done_with_the_results_of_this_run_and_all_its_figures(tmp_path):
    book, results = tmp_path / "02_x.ipynb", tmp_path / "results.json"

    def refusal(**found):
        if found:
            whole = {"run_id": "new", "notebook": "02_x", "about": {}, "findings": [], "figures": []} | found
            results.write_text(json.dumps(whole))
        with pytest.raises(execute.NotebookError) as error:
            execute.prove(book, results, "new")
        return str(error.value)

    cell = {"cell_type": "code", "execution_count": 1, "source": "a = 1"}
    book.write_text(json.dumps({"cells": [cell]}))
    assert "results.json is missing" in refusal()
    assert "from an earlier run" in refusal(run_id="old")
    assert "figure b is declared" in refusal(figures=["b"])
    assert "results.json is damaged" in refusal(findings=[{"claim": "x"}])
    book.write_text(json.dumps({"cells": [cell, {**cell, "execution_count": None}]}))
    assert "stopped at cell [1] of 2" in refusal()


def test_parameters_are_strict(project, capfd):
    def refusal(parameters):
        write(project, "02_x", parameters=parameters)
        assert run.main(["smoke"], project) == 2
        return capfd.readouterr().err

    assert "no parameter 'dataset'" in (text := refusal('scale: str = ""\ndatset: str = ""'))
    assert text.startswith("[FAIL] 02_x.ipynb") and "Did you mean 'datset'?" in text
    assert "Did you mean 'sedes'?" in refusal('scale: str = ""\ndataset: str = ""\nsedes: int = 3')
    assert "seeds is str there, and was given 5" in refusal('scale: str = ""\ndataset: str = ""\nseeds: str = ""')
    assert not (project / "runs" / "executed").exists()
    (project / "notebooks" / "02_x.ipynb").write_text("{")
    assert run.main(["smoke"], project) == 2 and "cannot be read as a notebook" in capfd.readouterr().err


def test_a_notebook_gets_the_options_that_it_declares(project):
    options = parse(["smoke", "--seeds", "2", "--force", "--captions", "a,b", "--image", "photo"])
    notebook = write(project, "00_tour", parameters='scale: str = ""\ndataset: str = ""')
    assert execute.parameters(notebook, options) == {"scale": "smoke", "dataset": "scenes"}
    columns = f'{PARAMETERS}\ncaptions: str = ""\nimage: str = ""'
    given = execute.parameters(write(project, "02_all", parameters=columns), options)
    assert given["captions"] == "a,b" and given["image"] == "photo" and given["seeds"] == 2 and given["force"] is True


@pytest.mark.parametrize("late", [False, True])
def test_a_data_set_that_cannot_be_used_is_refused_in_one_sentence(project, monkeypatch, capfd, late):
    def refuse(*_):
        raise DataError("scense: no such data set.")

    write(project, "02_good")
    monkeypatch.setattr(*((study, "cost") if late else (data, "check")), refuse)
    assert run.main(["smoke", "--dataset", "scense"], project) == 2
    shown = capfd.readouterr()
    assert shown.err == "[FAIL] scense: no such data set.\n" and "[....]" not in shown.out


def test_only_and_from_take_a_number_or_a_part_of_the_name(project, capfd):
    for name in ("01_apples", "02_pears", "03_plums"):
        write(project, name)
    names = lambda *words: [path.stem[:2] for path in run.chosen(project, parse(list(words)))]  # noqa: E731
    assert names("--only", "2") == names("--only", "02") == names("--only", "pear") == ["02"]
    assert names("--from", "02") == names("--from", "pears") == ["02", "03"] and names() == ["01", "02", "03"]
    assert run.main(["--only", "7"], project) == 2
    assert "'7': 01_apples, 02_pears, 03_plums" in capfd.readouterr().err


def test_a_full_disk_is_one_plain_line(project, monkeypatch, capfd):
    write(project, "02_good")
    monkeypatch.setattr(report, "write", mock.Mock(side_effect=OSError(28, "No space left on device")))
    assert run.main(["smoke"], project) == 1
    assert "No space left on device. What is trained stays" in capfd.readouterr().err


def test_a_memory_limit_and_a_home_that_may_only_be_read(project, monkeypatch, capfd):
    monkeypatch.setattr(run, "start", mock.Mock(side_effect=MemoryError))
    monkeypatch.setenv("XDG_CACHE_HOME", str(project))
    assert run.main(["smoke"], project) == 1
    assert "[FAIL] out of memory. What is trained stays" in capfd.readouterr().err
    assert os.environ["XDG_CACHE_HOME"] == str(project)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nothing/here")
    assert run.main(["smoke"], project) == 1
    assert os.environ["XDG_CACHE_HOME"] == os.environ["MPLCONFIGDIR"] == str(project / "runs" / "cache")


def test_two_at_once_do_not_mix_their_files(project, capfd):
    write(project, "02_good")
    executed(project, "").mkdir(parents=True)
    with FileLock(executed(project, ".lock")):
        assert run.main(["smoke"], project) == 1
    assert "another run_all.sh" in capfd.readouterr().err


@pytest.mark.parametrize("how, status", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_stopped_runner_takes_its_kernel_with_it(project, how, status):
    mark = project / "pid"
    write(project, "02_long", f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = f"""import sys; from pathlib import Path; from lib import data, run, study
data.check, study.cost = (lambda *_: ""), (lambda stems, *_: [(stem, 0, 0, 0) for stem in stems])
sys.exit(run.main(["smoke"], Path({str(project)!r})))"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: mark.exists() and mark.read_text())
    runner.send_signal(how)
    assert runner.wait() == status
    wait_for(lambda: not alive(mark.read_text()))


def alive(pid):
    """Return whether a process still runs (a zombie does not)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_models_of_ones_own_go_to_the_notebook_that_has_them(project, capfd, tmp_path, monkeypatch):
    write(project, "02_good")
    declared = PARAMETERS + '\nmodels: str = ""  # checkpoints\nseen: str = ""  # members'
    own = write(project, "05_own", parameters=declared)
    assert run.main(["smoke", "--only", "02", "--models", "RN50:openai"], project) == 2
    assert "--models: it is for notebook 05" in capfd.readouterr().err
    assert run.main(["laptop", "--only", "05", "--seen", "mine", "--publish"], project) == 2
    assert "--seen: it is for notebook 05 (--only 05), and its results are not published" in capfd.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").touch()
    (tmp_path / "b").mkdir()
    words = ["--models", "RN50:a.pt, local-dir:b", "--seen", "mine,a.pt"]
    found = execute.parameters(own, parse(words))
    assert found["models"] == f"RN50:{tmp_path}/a.pt,local-dir:{tmp_path}/b"
    assert found["seen"] == f"mine,{tmp_path}/a.pt"
    assert execute.parameters(own, parse(["--models", "hf-hub:a/b,RN50:openai"]))["models"] == "hf-hub:a/b,RN50:openai"
    assert execute.command(parse(words), "05_own").endswith("--models 'RN50:a.pt, local-dir:b' --seen mine,a.pt")
