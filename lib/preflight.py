"""What run_all.sh was asked for, and whether it can be done: its options, and the checks before anything runs.

python -m lib.preflight OPTIONS      exit status 2 and a message for an option that does not exist

What is imported at the top is in every Python: run_all.sh asks about a misspelt option before it installs anything.
"""

import contextlib
import difflib
import os
import shlex
import shutil
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lib import environment
from lib.recipes import SCALES

# (disk, memory) in GB that a scale needs: runs kept with checkpoints, and what is resident while training
NEEDS = {"smoke": (0.5, 1), "laptop": (2, 2), "gpu": (10, 8), "paper": (100, 24)}
ON_ACCELERATOR = ("gpu", "paper")


@dataclass(frozen=True)
class Check:
    """One preflight line: `[OK] name  text` or `[FAIL] name  text`."""

    name: str
    ok: bool
    text: str


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ` Did you mean NAME?` for the name that looks most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise ArgumentTypeError(f"expected a whole number from 1 on, found {word!r}.")
    return int(word)


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line; ends the program with status 2 and a message if one does not exist."""
    parser = ArgumentParser("run_all.sh", "./run_all.sh --help", add_help=False, allow_abbrev=False)
    parser.add_argument("scale", nargs="?", default="laptop")
    parser.add_argument("--dataset", default="scenes")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", default="")
    which.add_argument("--from", dest="start", default="")
    parser.add_argument("--seeds", type=_positive, default=0)  # 0: the notebook's own number
    parser.add_argument("--jobs", type=_positive, default=0)  # 0: what is right for this machine
    flags = ["--force", "--keep-going", "--list", "--lab"]
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    values, unknown = parser.parse_known_args(words)
    if unknown:
        known = ["--dataset", "--only", "--from", "--seeds", "--jobs", *flags, "--test", "--help"]
        parser.error(f"{unknown[0]!r} is not an option.{nearest(unknown[0].split('=')[0], known)}")
    if values.scale not in SCALES:
        parser.error(f"no scale is called {values.scale!r}: {', '.join(SCALES)}.{nearest(values.scale, SCALES)}")
    return values


def command(options: Namespace, notebook: str, name: str = "./run_all.sh") -> str:
    """Return the command line that does `options` from this notebook (its number or stem) on."""
    words = [name, options.scale]
    if options.dataset != "scenes":
        words += ["--dataset", options.dataset]
    words += ["--only" if options.only else "--from", notebook]
    if options.seeds:
        words += ["--seeds", str(options.seeds)]
    if options.jobs:
        words += ["--jobs", str(options.jobs)]
    words += ["--keep-going"] * options.keep_going  # and no --force, which would throw away what is trained by now
    return shlex.join(words)


def checks(options: Namespace, notebooks: list[Path], runs: Path) -> Iterator[Check]:
    """Yield the checks one by one, cheapest first."""
    yield parameters(options, notebooks)
    yield disk(runs, options.scale)
    yield memory(options.scale)
    yield data_set(options.dataset, runs)
    yield versions()
    yield accelerator(options.scale)


def versions() -> Check:
    """Check every pin of environment.yml."""
    if found := environment.problems_here():
        return Check("versions", False, f"{'; '.join(found)}. ./run_all.sh makes an environment that fits.")
    here = f"Python {sys.version.split()[0]}, torch {environment.installed('torch')}"
    return Check("versions", True, f"{here}, {len(environment.pins())} packages as environment.yml lists them")


def disk(runs: Path, scale: str) -> Check:
    """Check that the folder of runs can be written and has room."""
    need, advice = NEEDS[scale][0], "Set CLIPMEM_RUNS to a folder on another disk."
    try:
        runs.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=runs).close()
    except OSError as error:
        return Check("disk", False, f"{runs} cannot be written ({error.strerror}). {advice}")
    free = shutil.disk_usage(runs).free / 1e9
    text = f"{free:.1f} GB free for {runs}, {scale} needs {need} GB"
    return Check("disk", free >= need, text if free >= need else f"{text}. {advice}")


def memory(scale: str) -> Check:
    """Check the memory of the machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    need = NEEDS[scale][1]
    return Check("memory", total / 1e9 >= need, f"{total / 1e9:.1f} GB, {scale} needs {need} GB")


def accelerator(scale: str) -> Check:
    """Check that torch works, and that the two large scales have something faster than a CPU."""
    try:
        import torch
        import torchvision  # noqa: F401  # fails here when it was built for another torch
    except (ImportError, OSError, RuntimeError) as error:
        return Check("accelerator", False, f"torch does not work: {error}. Delete .venv and run again.")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        text = f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        return Check("accelerator", True, text)
    if torch.backends.mps.is_available():
        return Check("accelerator", True, "Apple MPS")
    if scale in ON_ACCELERATOR:
        return Check("accelerator", False, f"none, and the scale {scale} would take weeks without. Use laptop.")
    return Check("accelerator", True, f"none: {os.cpu_count()} CPU cores")


def data_set(dataset: str, runs: Path) -> Check:
    """Check that the data set is there and has images and captions, without reading it all."""
    from lib.data import check
    from lib.sources import DataError

    try:
        return Check("data set", True, check(dataset, cache=runs / "cache").rstrip("."))
    except DataError as error:
        return Check("data set", False, str(error))


def declared(notebook: Path) -> dict[str, str]:
    """Return the parameters in the notebook's cell tagged `parameters`: name -> annotated type ("None" without one)."""
    from papermill import inspect_notebook

    return {name: entry["inferred_type_name"] for name, entry in inspect_notebook(str(notebook)).items()}


def given(options: Namespace, notebook: Path) -> dict[str, Any]:
    """Return the parameters for a notebook: scale and dataset; seeds and force if asked for and declared there."""
    asked = {name: getattr(options, name) for name in ("seeds", "force") if getattr(options, name)}
    there = declared(notebook)
    return {"scale": options.scale, "dataset": options.dataset} | {n: asked[n] for n in asked if n in there}


def complaints(notebook: Path, values: dict[str, Any]) -> list[str]:
    """Return why these parameters do not fit the notebook: unknown names (papermill only warns) and wrong types."""
    kinds = declared(notebook)
    found = []
    for name, value in values.items():
        if name not in kinds:
            found.append(f"{notebook.name} has no parameter {name!r}: {', '.join(kinds)}.{nearest(name, kinds)}")
        elif kinds[name] not in (type(value).__name__, "None"):
            found.append(f"{notebook.name}: {name} is {kinds[name]} there, and was given {value!r}.")
    return found


def parameters(options: Namespace, notebooks: list[Path]) -> Check:
    """Check that every notebook takes the parameters it will be given."""
    found = []
    for notebook in notebooks:
        try:
            found += complaints(notebook, given(options, notebook))
        except (ValueError, KeyError, AttributeError) as error:
            found.append(f"{notebook} cannot be read as a notebook: {str(error)[:200]}")
    return Check("notebooks", not found, " ".join(found) or f"{len(notebooks)} with valid parameters")


if __name__ == "__main__":
    parse(sys.argv[1:])
