"""run_all.sh itself, its options, and the line that shows progress."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib import progress
from lib.preflight import command, parse

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "words, hint",
    [
        (["--sedes", "2"], "Did you mean --seeds?"),
        (["laptpo"], "Did you mean laptop?"),
        (["--seeds", "none"], "whole number from 1"),
        (["--seeds", "0"], "whole number from 1"),
        (["--only", "01", "--from", "02"], "not allowed with argument --only"),
    ],
)
def test_options_that_do_not_exist(words, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2 and hint in capsys.readouterr().err


def test_the_continue_command_gives_the_same_options_again():
    options = parse(
        ["gpu", "--dataset", "/a folder/x.parquet", "--seeds", "2", "--jobs", "2", "--force", "--keep-going"]
    )
    line = command(options, "03")
    assert line == "./run_all.sh gpu --dataset '/a folder/x.parquet' --from 03 --seeds 2 --jobs 2 --keep-going"
    assert command(parse(["gpu", "--only", "02"]), "02") == "./run_all.sh gpu --only 02"


def test_progress_is_written_for_the_first_and_last_report_and_read_back(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    assert progress.read(path) == progress.STARTING
    monkeypatch.setenv("CLIPMEM_PROGRESS", str(path))
    progress.report("train", 1, 10)
    progress.report("train", 2, 10)
    assert progress.read(path)["done"] == 1, "two reports a second at most"
    progress.report("train", 10, 10)
    assert progress.read(path)["done"] == 10
    monkeypatch.setenv("CLIPMEM_PROGRESS", str(tmp_path / "no" / "folder"))
    progress.report("other", 0, 1)
    monkeypatch.delenv("CLIPMEM_PROGRESS")
    progress.report("score", 1, 2)
    assert progress.read(path)["phase"] == "train"


def test_the_status_line_estimates_what_remains_of_the_phase():
    report = {"phase": "train f", "done": 30, "total": 100}
    line = progress.status_line("02_x", report, elapsed=70, in_phase=20, first=10)
    assert " 30 %  elapsed 1:10  remaining 1:10" in line and "train f" in line
    assert progress.clock(3605) == "1:00:05"


def shell(*words, cwd=ROOT):
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    return subprocess.run([str(ROOT / "run_all.sh"), *words], cwd=cwd, env=environ, capture_output=True, text=True)


def test_the_shell_shows_its_help_and_refuses_what_it_does_not_know(tmp_path):
    start = time.monotonic()
    done = shell("--help", cwd=tmp_path)
    assert done.returncode == 0 and time.monotonic() - start < 1
    for option in (
        "--dataset",
        "--only",
        "--from",
        "--seeds",
        "--jobs",
        "--force",
        "--keep-going",
        "--list",
        "--lab",
        "--test",
    ):
        assert option in done.stdout
    done = shell("smoke", "--forse", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean --force?" in done.stderr and "Traceback" not in done.stderr
    assert shell("--test", "smoke").returncode == 2
