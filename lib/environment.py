"""Does a Python hold what environment.yml lists, and installing what it lacks.

    python lib/environment.py check            silent and exit status 0 if it fits, else one line a problem and 1
    python lib/environment.py torch            the folder of a torch worth keeping, if this Python has one
    python lib/environment.py keep FOLDER      let this Python find the torch in that folder
    python lib/environment.py complete LOG     install what is missing into this Python, all output to LOG

Standard library only, and readable by Python 3.8: it runs before anything is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
OLDEST = {"torch": (2, 11), "torchvision": (0, 26)}  # torchvision 0.26 is the one that came with torch 2.11
DISK_GB = 8  # torch brings its accelerator libraries on Linux: 6.3 GB installed, the rest while unpacking
PIP = ["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
HINTS = {
    "No space left": "The disk is full.",
    "Could not find a version": "Either there is no network, or no ready-made package for this Python and system.",
    "Connection": "The package index could not be reached: no network?",
    "Permission denied": "A folder cannot be written by this user.",
}


@dataclass(frozen=True)
class Pin:
    """One line of the pip section: `name==version  # reason`."""

    name: str
    version: str
    reason: str


def pins(path: Path = ROOT / "environment.yml") -> list[Pin]:
    """Return the pip section of environment.yml. Raises ValueError for a line without a version or a reason."""
    found, inside = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() == "- pip:":
            inside = True
        elif inside and line.strip() and not line.strip().startswith("#"):
            match = re.fullmatch(r"\s+- ([\w.-]+)==([\w.]+)\s+# (\S.*)", line)
            if not match:
                raise ValueError(f"{path.name}, line {number}: expected `- name==version  # reason`, found {line!r}")
            found.append(Pin(*match.groups()))
    return found


def installed(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple:
    """Return the leading numbers of a version: 2.11.0a0+cpu -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def pair_problem(torch: str, vision: str, vision_requires: list[str]) -> str:
    """Return why this torch and this torchvision (versions) cannot work together, or an empty string."""
    for line in vision_requires:
        match = re.match(r"torch\s*\(?\s*(==|>=)\s*([\w.+]+)", line)
        if match:
            have, asked = numbers(torch), numbers(match.group(2))
            if have < asked or (match.group(1) == "==" and have != asked):
                return f"torchvision {vision} asks for torch{match.group(1)}{match.group(2)}, found {torch}"
    if ("+cpu" in torch) != ("+cpu" in vision):
        return f"torch {torch} and torchvision {vision} were built apart (one of them for the CPU only)"
    return ""


def problems(wanted: list[Pin], version_of: Callable[[str], str | None] = installed) -> list[str]:
    """Return one sentence for each distribution that does not fit. Local suffixes (`+cpu`) are ignored."""
    found = []
    for pin in wanted:
        have = version_of(pin.name)
        if have is None:
            found.append(f"{pin.name} is missing")
        elif pin.name in OLDEST:
            if numbers(have)[:2] < OLDEST[pin.name]:
                found.append(f"{pin.name} {have} is older than {'.'.join(map(str, OLDEST[pin.name]))}")
        elif have.split("+")[0] != pin.version:
            found.append(f"{pin.name} is {have}, not {pin.version}")
    return found


def problems_here(python: tuple = sys.version_info[:2]) -> list[str]:
    """Return what does not fit in the Python that runs this; an empty list means that the environment fits."""
    found = problems(pins())
    if python < OLDEST_PYTHON:
        found.insert(0, f"Python {python[0]}.{python[1]} is older than {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}")
    torch, vision = installed("torch"), installed("torchvision")
    apart = pair_problem(torch, vision, metadata.requires("torchvision") or []) if torch and vision else ""
    return [*found, apart] if apart else found


def requests(wanted: list[Pin], version_of: Callable[[str], str | None] = installed) -> list[str]:
    """Return what to ask pip for: every pin, except that a torch from 2.11 on stays exactly as it is.

    Naming the torch that stays keeps pip from exchanging it; torchvision is then chosen by pip to match it.
    """
    asked = {pin.name: f"{pin.name}=={pin.version}" for pin in wanted}
    pinned = next(pin.version for pin in wanted if pin.name == "torch")
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch and numbers(torch)[:2] >= OLDEST["torch"]:
        asked["torch"] = f"torch=={torch}"
        if numbers(torch) != numbers(pinned):
            asked["torchvision"] = f"torchvision=={vision}" if vision else "torchvision"
    return list(asked.values())


def torch_error() -> str:
    """Return the error of importing torch and torchvision in a fresh Python, or an empty string."""
    code = "import torch, torchvision; torch.ones(2).sum().item()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]


def torch_folder() -> str:
    """Return the folder of an installed torch that the project can use as it is, or an empty string."""
    torch, vision = installed("torch"), installed("torchvision")
    if not torch or not vision or numbers(torch)[:2] < OLDEST["torch"] or torch_error():
        return ""
    return str(Path(str(metadata.distribution("torch").locate_file(""))).resolve())


def find(name: str, folder: Path | str) -> None:
    """Let this Python import from a folder, whatever the working directory: name.pth in its site-packages."""
    Path(sysconfig.get_paths()["purelib"], f"{name}.pth").write_text(f"{folder}\n")


def complete(log: Path) -> int:
    """Install what is missing into this Python with pip, try torch, make `lib` importable. Return the exit status."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if installed("torch") is None and free < DISK_GB:
        return _fail(f"the environment needs about {DISK_GB} GB, {free:.1f} GB are free on the disk of {ROOT}.")
    subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True)  # an earlier call may have been stopped
    print(f"Installing {len(pins())} packages: minutes, and up to 3 GB to fetch. Log: {log}", flush=True)
    with log.open("w") as output:
        command = [sys.executable, *PIP, *requests(pins())]
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if status:
        return _fail(f"pip ended with status {status}.", log)
    broken = problems_here() or list(filter(None, [torch_error()]))
    if broken:
        return _fail(f"after the installation: {'; '.join(broken)}. Delete the folder .venv and try again.", log)
    find("clipmem_project", ROOT)
    return 0


def _fail(reason: str, log: Path | None = None) -> int:
    """Print what went wrong, the last lines of the log and what to do. Return exit status 1."""
    print(f"[FAIL] the environment could not be made: {reason}", file=sys.stderr)
    if log:
        text = log.read_text(errors="replace")
        lines = [f"    {line}" for line in text.strip().splitlines()[-12:]]
        lines += [hint for sign, hint in HINTS.items() if sign in text]
        lines += [f"The whole log: {log}. The same command continues where this one stopped."]
        print("\n".join(lines), file=sys.stderr)
    return 1


def main(words: list[str]) -> int:
    """Do one of the four things above and return its exit status."""
    if words[0] == "torch":
        print(torch_folder())
    elif words[0] == "keep":
        find("torch_of_this_machine", words[1])
    elif words[0] == "complete":
        return complete(Path(words[1]))
    else:
        found = problems_here()
        print("".join(f"{problem}\n" for problem in found), end="")
        return int(bool(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nStopped. The same command continues the installation.", file=sys.stderr)
        sys.exit(130)
