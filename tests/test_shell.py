"""run_all.sh and environment.yml: how it is called, and which environment it takes or makes."""

import os
import re
import shutil
import subprocess
import sys

from conftest import ROOT

BARE = """#!/usr/bin/env bash
echo "$*" >>"$(dirname "$0")/log"
case "$*" in
  *"import parse"*) exit 7 ;; # the options are right
  "-c "*) ;;
  *" --without-pip "*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  "-m venv "* | "-m pip --version" | "-P -c "*) exit 1 ;;
esac
"""  # a Python 3.11 or newer without packages and without ensurepip


def shell(*words, **environment):
    about = {"env": {**os.environ, "VIRTUAL_ENV": sys.prefix, **environment}, "cwd": "/"}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, **about)


def test_help_and_wrong_options_need_no_environment_and_a_link_will_do(tmp_path):
    (tmp_path / "a link").symlink_to(ROOT / "run_all.sh")
    bare = {"VIRTUAL_ENV": "", "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"}
    done = shell("sh", tmp_path / "a link", "--help", **bare)
    assert done.returncode == 0 and done.stdout.startswith("usage: ./run_all.sh [-h]")
    for words in ("laptpo", "--sedes 2", "--seeds 0", "--precision fp16", "--only 01 --from 02", "--share 3/2"):
        done = shell(tmp_path / "a link", *words.split(), **bare)
        assert done.returncode == 2 and "./run_all.sh: error: " in done.stderr and done.stdout == ""


def test_the_active_environment_is_taken_if_it_has_all_and_else_one_is_made_or_a_sentence_says_how(tmp_path):
    """In a project of its own, whose runner only prints; no network is used."""
    project, tools = tmp_path / "a project", tmp_path / "bin"
    shutil.copytree(ROOT / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.sh", project)
    (project / "lib" / "companion" / "run.py").write_text("import sys\nprint(sys.executable, sys.argv[1:])")
    tools.mkdir()
    for name in ("bash", "cp", "dirname", "env", "mkdir", "readlink", "rm", "sed", "wc"):
        (tools / name).symlink_to(shutil.which(name))

    def started(*packages):
        pins = "".join(f"      - {line}\n" for line in packages)
        (project / "environment.yml").write_text(f"  - pip:\n{pins}      # test tools\n      - no-such-tool==1\n")
        return shell(project / "run_all.sh", "smoke", "--image", "a b", PATH=str(tools))

    assert started("pytest>=1", "filelock>=3  # why").stdout == f"{sys.executable} ['smoke', '--image', 'a b']\n"
    for lacking in (["pytest==0.1"], ["pytest>=1", "no-such-package==1"]):
        done = started(*lacking)
        assert done.returncode == 1 and done.stderr.startswith("[FAIL] Install Python 3.11 to 3.14 with venv and pip")
    (tools / "python3").write_text(BARE)
    (tools / "python3").chmod(0o755)
    assert started("torch>=2.11", "no-such-package==1").returncode == 0
    install = f"-m pip --python {project}/.venv/bin/python install torch>=2.11 no-such-package==1"
    assert (tools / "log").read_text().splitlines()[-1] == install
    ran = (project / ".venv" / "bin" / "log").read_text().splitlines()[-1]
    assert ran == "-P -m lib.companion.run smoke --image a b"


def test_every_package_has_a_reason_and_all_but_torch_a_version():
    lines = re.findall(r"^      - (.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert len(lines) > 20 and all(re.fullmatch(r"\S+(==|>=)[\d.]+ +# \S.{4,}", line) for line in lines)
    assert {line.split(">=")[0] for line in lines if "==" not in line} == {"torch", "torchvision"}
