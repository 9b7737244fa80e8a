"""environment.yml, and whether a Python fits it."""

import ast
import subprocess
import sys

import pytest

from lib import environment
from lib.environment import Pin, pair_problem, pins, problems, requests

FILE = environment.ROOT / "environment.yml"
TORCH = Pin("torch", "2.15.0", "trains")
VISION = Pin("torchvision", "0.29.2", "augments")
PANDAS = Pin("pandas", "3.1.1", "tables")


def versions(**have):
    return {name.replace("_", "-"): version for name, version in have.items()}.get


def test_every_line_of_the_file_is_pinned_and_has_a_reason():
    lines = [line for line in FILE.read_text().splitlines() if line.startswith("      - ")]
    assert len(lines) == len(pins()) > 10
    assert all(pin.version and len(pin.reason) > 5 for pin in pins())
    assert len({pin.name for pin in pins()}) == len(pins())


def test_a_line_without_version_or_reason_is_refused_by_its_number(tmp_path):
    path = tmp_path / "environment.yml"
    path.write_text("dependencies:\n  - pip:\n      - torch==2.15.0  # trains\n      - pandas\n")
    with pytest.raises(ValueError, match=r"line 4.*pandas"):
        pins(path)


def test_this_environment_fits():
    assert environment.problems_here() == []
    assert environment.main(["check"]) == 0


def test_an_exact_environment_fits_and_each_difference_is_named():
    wanted = [TORCH, VISION, PANDAS]
    assert problems(wanted, versions(torch="2.15.0", torchvision="0.29.2", pandas="3.1.1")) == []
    found = problems(wanted, versions(torch="2.15.0", pandas="2.3.0"))
    assert found == ["torchvision is missing", "pandas is 2.3.0, not 3.1.1"]
    assert environment.problems_here(python=(3, 9)) == ["Python 3.9 is older than 3.11"]


@pytest.mark.parametrize("torch, vision", [("2.11.0+rocm7", "0.26.0+rocm7"), ("2.15.0+cpu", "0.29.2+cpu")])
def test_any_torch_from_2_11_on_fits(torch, vision):
    assert problems([TORCH, VISION], versions(torch=torch, torchvision=vision)) == []


def test_an_older_torch_does_not_fit():
    assert "torch 2.10.1 is older than 2.11" in problems([TORCH], versions(torch="2.10.1"))


def test_torch_and_torchvision_have_to_belong_together():
    for asks in (["numpy", "torch (>=2.14.0)", "torchvision-extra==9.0"], ["torch"], ["torch==2.15.0", "pillow"], []):
        assert pair_problem("2.15.0", "0.29.2", asks) == ""
    assert "asks for torch==2.11.0" in pair_problem("2.12.0", "0.26.0", ["numpy", "torch==2.11.0"])
    assert "asks for torch>=2.14.0" in pair_problem("2.12.0", "0.29.2", ["torch (>=2.14.0)"])
    assert "built apart" in pair_problem("2.15.0+cpu", "0.29.2", ["torch (>=2.14.0)"])


def test_pip_is_never_asked_to_exchange_a_torch_that_is_there():
    wanted = [TORCH, VISION, PANDAS]
    assert requests(wanted, versions()) == ["torch==2.15.0", "torchvision==0.29.2", "pandas==3.1.1"]
    kept = requests(wanted, versions(torch="2.11.0+cu130", torchvision="0.26.0+cu130"))
    assert kept == ["torch==2.11.0+cu130", "torchvision==0.26.0+cu130", "pandas==3.1.1"]
    assert requests(wanted, versions(torch="2.12.0"))[:2] == ["torch==2.12.0", "torchvision"]
    assert requests(wanted, versions(torch="2.9.0"))[0] == "torch==2.15.0"


def test_a_failed_installation_shows_the_end_of_the_log_and_a_hint(tmp_path, monkeypatch, capfd):
    missing = Pin("no-such-package-of-clipmem", "9.9.9", "a test")
    monkeypatch.setattr(environment, "pins", lambda: [TORCH, missing])
    monkeypatch.setattr(environment, "DISK_GB", 0)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert environment.main(["complete", str(tmp_path / "log")]) == 1
    shown = capfd.readouterr().err
    assert "no-such-package-of-clipmem" in shown and "no network" in shown and str(tmp_path / "log") in shown


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(environment, "installed", lambda name: None)
    monkeypatch.setattr(environment, "DISK_GB", 10**9)
    assert environment.complete(tmp_path / "log") == 1
    assert "are free on the disk" in capfd.readouterr().err
    assert not (tmp_path / "log").exists()


def test_a_completed_environment_imports_lib_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "DISK_GB", 0)
    monkeypatch.setattr(environment.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(environment, "PIP", ["-c", "pass"])
    assert environment.complete(tmp_path / "log") == 0
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import lib.environment; print(lib.environment.ROOT)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(environment.ROOT)
    assert environment.main(["keep", "/a/torch"]) == 0
    assert (tmp_path / "torch_of_this_machine.pth").read_text() == "/a/torch\n"


def test_the_checker_needs_nothing_but_an_old_python():
    path = environment.ROOT / "lib" / "environment.py"
    ast.parse(path.read_text(), feature_version=(3, 8))
    done = subprocess.run([sys.executable, "-I", "-S", str(path), "check"], capture_output=True, text=True)
    assert done.returncode == 1 and "torch is missing" in done.stdout
