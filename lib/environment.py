"""Does a Python hold what environment.yml lists, and installing what it lacks.

    python lib/environment.py check            silent and exit status 0 if it fits, else one line a problem and 1
    python lib/environment.py torch            the folder of a torch worth keeping, if this Python has one
    python lib/environment.py complete LOG     install what is missing into this Python, all output to LOG

Standard library only, and readable by Python 3.8: it runs before anything is installed.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
OLDEST = {"torch": (2, 11), "torchvision": (0, 26)}  # torchvision 0.26 is the one that came with torch 2.11
DISK_GB = 8  # torch brings its accelerator libraries on Linux: 6.3 GB installed, the rest while unpacking
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
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple:
    """Return the leading numbers of a version: 2.11.0a0+cpu -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def torch_wanted(requirements: list[str] | None) -> str:
    """Return what torchvision asks of torch (`>=2.14.0`), given its requirements; empty if it asks nothing."""
    for line in requirements or []:
        match = re.match(r"torch\b\s*\(?\s*([=><!~][^;)]*)?", line)
        if match and not line.startswith("torchvision"):
            return (match.group(1) or "").strip()
    return ""


def pair_problem(torch: str, vision: str, wanted: str) -> str:
    """Return why this torch and this torchvision (versions) cannot work together, or an empty string."""
    match = re.match(r"(==|>=)\s*([\w.+]+)", wanted)
    if match:
        have, asked = numbers(torch), numbers(match.group(2))
        if have < asked if match.group(1) == ">=" else have != asked:
            return f"torchvision {vision} asks for torch{match.group(0)}, found {torch}"
    if ("+cpu" in torch) != ("+cpu" in vision):
        return f"torch {torch} and torchvision {vision} were built apart (one of them for the CPU only)"
    return ""


def problems(
    wanted: list[Pin],
    version_of: Callable[[str], str | None] = installed,
    python: tuple = sys.version_info[:2],
    vision_asks: str = "",
) -> list[str]:
    """Return one sentence for each thing that does not fit; an empty list means that the environment fits.

    `version_of` maps a distribution's name to its version or None, `vision_asks` is what torchvision asks of torch.
    Local suffixes (`+cpu`) are ignored.
    """
    found = []
    if python < OLDEST_PYTHON:
        found.append(f"Python {python[0]}.{python[1]} is older than {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}")
    for pin in wanted:
        have = version_of(pin.name)
        if have is None:
            found.append(f"{pin.name} is missing")
        elif pin.name in OLDEST:
            if numbers(have)[:2] < OLDEST[pin.name]:
                found.append(f"{pin.name} {have} is older than {'.'.join(map(str, OLDEST[pin.name]))}")
        elif have.split("+")[0] != pin.version:
            found.append(f"{pin.name} is {have}, not {pin.version}")
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch and vision:
        found += filter(None, [pair_problem(torch, vision, vision_asks)])
    return found


def problems_here() -> list[str]:
    """Return what does not fit in the Python that runs this."""
    asks = torch_wanted(importlib.metadata.requires("torchvision")) if installed("torchvision") else ""
    return problems(pins(), vision_asks=asks)


def requests(wanted: list[Pin], version_of: Callable[[str], str | None] = installed) -> list[str]:
    """Return what to ask pip for: every pin, except that a torch from 2.11 on stays exactly as it is.

    Naming the torch that stays keeps pip from exchanging it; torchvision is then chosen by pip to match it.
    """
    torch = version_of("torch")
    keep = torch is not None and numbers(torch)[:2] >= OLDEST["torch"]
    lines = []
    for pin in wanted:
        if keep and pin.name == "torch":
            lines.append(f"torch=={torch}")
        elif keep and pin.name == "torchvision" and numbers(str(torch)) != numbers(_version(wanted, "torch")):
            have = version_of("torchvision")
            lines.append(f"torchvision=={have}" if have else "torchvision")
        else:
            lines.append(f"{pin.name}=={pin.version}")
    return lines


def _version(wanted: list[Pin], name: str) -> str:
    return next(pin.version for pin in wanted if pin.name == name)


def torch_works() -> str:
    """Return the error of importing torch and torchvision in a fresh Python, or an empty string."""
    code = "import torch, torchvision; print(torch.ones(2).sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]


def torch_folder() -> str:
    """Return the folder of an installed torch that the project can use as it is, or an empty string."""
    torch, vision = installed("torch"), installed("torchvision")
    if not torch or not vision or numbers(torch)[:2] < OLDEST["torch"] or torch_works():
        return ""
    return str(Path(str(importlib.metadata.distribution("torch").locate_file(""))).resolve())


def complete(log: Path) -> int:
    """Install what is missing into this Python with pip, and try torch. Return the exit status."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if installed("torch") is None and free < DISK_GB:
        return _fail(f"the environment needs about {DISK_GB} GB, {free:.1f} GB are free on the disk of {ROOT}.", None)
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True)
    print(f"Installing {len(pins())} packages: minutes, and up to 3 GB to fetch. Log: {log}", flush=True)
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    status = _quietly([sys.executable, "-m", "pip", "install", *options, *requests(pins())], log)
    if status:
        return _fail(f"pip ended with status {status}.", log)
    broken = problems_here() or [error for error in [torch_works()] if error]
    if broken:
        return _fail(f"after the installation: {'; '.join(broken)}. Delete the folder .venv and try again.", log)
    return 0


def _quietly(command: list[str], log: Path) -> int:
    """Run a command with its output in a file, and count the minutes on a terminal."""
    start = time.time()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            if sys.stdout.isatty():
                seconds = int(time.time() - start)
                print(f"\r  {seconds // 60}:{seconds % 60:02d}", end="", flush=True)
            time.sleep(0.5)
    if sys.stdout.isatty():
        print("\r       \r", end="")
    return process.returncode


def _fail(reason: str, log: Path | None) -> int:
    """Print what went wrong, the last lines of the log and what to do. Return exit status 1."""
    print(f"[FAIL] the environment could not be made: {reason}", file=sys.stderr)
    if log:
        text = log.read_text(errors="replace")
        print("".join(f"    {line}\n" for line in text.strip().splitlines()[-12:]), end="", file=sys.stderr)
        print("".join(f"{hint}\n" for sign, hint in HINTS.items() if sign in text), end="", file=sys.stderr)
        print(f"The whole log: {log}. The same command continues where this one stopped.", file=sys.stderr)
    return 1


def main(words: list[str]) -> int:
    if words[:1] == ["torch"]:
        print(torch_folder())
        return 0
    if words[:1] == ["complete"] and len(words) == 2:
        try:
            return complete(Path(words[1]))
        except KeyboardInterrupt:
            print("\nStopped. The same command continues the installation.", file=sys.stderr)
            return 130
    found = problems_here()
    print("".join(f"{problem}\n" for problem in found), end="")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
