"""run_all.sh: its options, how it is called, and which environment it uses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import run
from lib.execute import command
from lib.run import parse

ROOT = Path(__file__).resolve().parent.parent
WRONG = {
    "--sedes 2": "Did you mean '--seeds'?",
    "laptpo": "Did you mean 'laptop'?",
    "--seeds none": "invalid int value",
    "--seeds 0": "whole number from 1",
    "--precision fp16": "expected fp32 or bf16",
    "--only 01 --from 02": "use one of them",
    "--dataset=": "got an empty text",
}


@pytest.mark.parametrize("words", WRONG)
def test_options_that_do_not_exist(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words.split())
    assert ended.value.code == 2 and WRONG[words] in capsys.readouterr().err


def test_the_environment_is_checked_like_the_options(monkeypatch, capsys):
    for name, said in (("JOBS", "expected a whole number from 1"), ("PRECISION", "expected fp32 or bf16")):
        monkeypatch.setenv(f"CLIPMEM_{name}", "0")
        with pytest.raises(SystemExit):
            parse([])
        assert f"CLIPMEM_{name}: {said}" in capsys.readouterr().err
        monkeypatch.setenv(f"CLIPMEM_{name}", "")  # as good as none
        assert parse(["--export", "~no-one/x", "--models", "RN50"]).export == "~no-one/x"


def test_the_continue_command_gives_the_same_options_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    words = ["gpu", "--image", "photo", "--seeds", "2", "--jobs", "2", "--force", "--keep-going", "--publish"]
    words += ["--precision", "fp32"]
    line = command(parse([*words, "--dataset", "a b"]), "03_encoder_attribution")
    options = f"--dataset '{tmp_path}/a b' --image photo --seeds 2 --jobs 2 --precision fp32 --keep-going --publish"
    assert line == f"./run_all.sh gpu --from 03 {options}", "a path is absolute, and nothing trained is thrown away"
    assert command(parse(["gpu", "--only", "miscap"]), "02_x") == "./run_all.sh gpu --only miscap"


def shell(script, *words, sh=(), **environment):
    given = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONHOME": "/nope", **environment}
    return subprocess.run([*sh, str(script), *words], cwd="/", env=given, capture_output=True, text=True)


def test_the_shell_shows_its_help_and_refuses_what_it_does_not_know(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(ROOT / "run_all.sh")
    for done in (shell(ROOT / "run_all.sh", "--help"), shell(link, "--help", sh=["sh"])):
        assert done.returncode == 0 and done.stdout.startswith("./run_all.sh [smoke|laptop|deep|gpu|paper|paper16]")
        for name in (*run.DEFAULTS, *run.FLAGS, "test", "help"):
            assert f"\n  --{name} " in done.stdout
    done = shell(link, "smoke", "--forse", sh=["sh"])
    assert done.returncode == 2 and "Did you mean '--force'?" in done.stderr and "Traceback" not in done.stderr
    assert shell(link, "--test", "smoke").returncode == 2


def test_limits_of_the_shell_are_raised_or_told_and_what_is_written_can_be_read_again(tmp_path):
    """With a Python that only shows what it got: here, no package is asked for."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "run_all.sh", project)
    (project / "environment.yml").touch()
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho $(umask) $(ulimit -n) ${HOME:+home}\n")
    python.chmod(0o755)
    limited = ["bash", "-c", 'unset HOME; umask 277; ulimit -Sn 99; ulimit -v 7000000; exec "$@"', "-"]
    done = shell(project / "run_all.sh", sh=limited, VIRTUAL_ENV=str(tmp_path))
    assert done.stdout.splitlines()[-1] == "0077 256 home"
    assert done.stderr == "[NOTE] memory is limited to 7000000 kB; what fails may need more: ulimit -v 8000000\n"


def test_an_environment_is_used_when_it_has_what_is_needed(tmp_path):
    """In a project of its own, whose lib.run only prints; no Python and no network can be found for an installation."""
    project, tools = tmp_path / "a project", tmp_path / "bin"
    (project / "lib").mkdir(parents=True)
    (project / "lib" / "__init__.py").touch()
    tools.mkdir()
    for name in ("bash", "cat", "dirname", "grep", "ln", "mkdir", "readlink", "rm", "sed", "sleep", "tail"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("run_all.sh", "lib/install.sh"):
        shutil.copy(ROOT / name, project / name)
    (project / "lib" / "run.py").write_text("import sys\nprint(sys.executable, sys.argv[1:])")

    def started(*packages):
        pins = "".join(f"      - {line}\n" for line in packages)
        (project / "environment.yml").write_text(f"  - pip:\n{pins}      # test tools\n      - no-such-tool==1\n")
        return shell(project / "run_all.sh", "smoke", PATH=str(tools))

    assert started("pytest>=1", "filelock>=3  # why").stdout == f"{sys.prefix}/bin/python ['smoke']\n"
    for lacking in (["pytest==0.1"], ["pytest>=1", "no-such-package==1"]):
        done = started(*lacking)
        assert done.returncode == 1 and "[FAIL] no Python 3.11 to 3.14 on the PATH" in done.stderr


def test_every_package_has_a_reason_and_all_but_torch_a_version():
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^      - (.*)$", text, re.MULTILINE)
    assert len(lines) > 20 and all(re.fullmatch(r"\S+(==|>=)[\d.]+ +# \S.{4,}", line) for line in lines)
    assert {line.split(">=")[0] for line in lines if "==" not in line} == {"torch", "torchvision"}
    tools = text.split("# test tools")[1]
    assert all(name in tools for name in ("pytest", "ruff", "mypy"))
