"""What is checked before anything runs: versions, disk, memory, accelerator, data set, the notebooks' parameters."""

import ast
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import environment
from lib.options import Options, nearest

# (disk, memory) in GB that a scale needs: runs kept with checkpoints, and what is resident while training
NEEDS = {"smoke": (0.5, 1), "laptop": (2, 2), "gpu": (10, 8), "paper": (100, 24)}
ON_ACCELERATOR = ("gpu", "paper")
TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "str": (str,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True)
class Check:
    """One preflight line: `[OK] name  text` or `[FAIL] name  text`."""

    name: str
    ok: bool
    text: str


def preflight(options: Options, notebooks: list[Path], runs: Path) -> Iterator[Check]:
    """Yield the checks one by one, cheapest first."""
    yield parameters(notebooks, wanted(options))
    yield disk(runs, options.scale)
    yield memory(options.scale)
    yield data_set(options.dataset, runs)
    yield versions()
    yield accelerator(options.scale)


def versions() -> Check:
    """Check every pin of environment.yml."""
    found = environment.problems_here()
    here = f"Python {sys.version.split()[0]}, torch {environment.installed('torch')}"
    if found:
        return Check("versions", False, f"{'; '.join(found)}. ./run_all.sh makes an environment that fits.")
    return Check("versions", True, f"{here}, {len(environment.pins())} packages as environment.yml lists them")


def disk(runs: Path, scale: str) -> Check:
    """Check that the folder of runs can be written and has room."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(runs).free / 1e9
    except OSError as error:
        return Check("disk", False, f"{runs} cannot be made ({error.strerror}). Set CLIPMEM_RUNS to another folder.")
    if not os.access(runs, os.W_OK):
        return Check("disk", False, f"{runs} cannot be written. Set CLIPMEM_RUNS to another folder.")
    need = NEEDS[scale][0]
    advice = "" if free >= need else ". Free some, or set CLIPMEM_RUNS to another disk."
    return Check("disk", free >= need, f"{free:.1f} GB free for {runs}, {scale} needs {need} GB{advice}")


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


def wanted(options: Options) -> dict[str, Any]:
    """Return the parameters to give to each notebook: scale and dataset always, the others where they were given."""
    optional = {"seeds": options.seeds, "force": options.force}
    extra = {name: value for name, value in optional.items() if value}
    return {"scale": options.scale, "dataset": options.dataset, **extra}


def declared(notebook: Path) -> dict[str, dict]:
    """Return the parameters of the notebook's cell tagged `parameters`: name -> inferred_type_name, default, help."""
    from papermill import inspect_notebook

    return inspect_notebook(str(notebook))


def given(notebook: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return those of the asked parameters that this notebook takes; seeds and force only where it declares them."""
    names = declared(notebook)
    return {name: value for name, value in asked.items() if name in names or name in ("scale", "dataset")}


def complaints(notebook: Path, values: dict[str, Any]) -> list[str]:
    """Return why these parameters do not fit the notebook: unknown names (papermill only warns) and wrong types."""
    names = declared(notebook)
    found = []
    for name, value in values.items():
        if name not in names:
            there = ", ".join(names) or "none: it has no cell tagged `parameters`"
            found.append(f"{notebook.name} has no parameter {name!r} (it has {there}).{nearest(name, names)}")
            continue
        kind = str(names[name]["inferred_type_name"])
        expected = TYPES.get(kind)
        if expected and (not isinstance(value, expected) or (kind != "bool" and isinstance(value, bool))):
            found.append(f"{notebook.name}: {name} is {kind} there, and was given {value!r}.")
    return found + [text for name, entry in names.items() if (text := _bad_default(notebook, name, entry))]


def _bad_default(notebook: Path, name: str, entry: dict) -> str:
    """Return what is wrong with a declared parameter: not a plain literal, or not of its annotated type."""
    try:
        value = ast.literal_eval(str(entry["default"]))
    except (ValueError, SyntaxError):
        return f"{notebook.name}: {name} = {entry['default']} is not a plain literal."
    expected = TYPES.get(str(entry["inferred_type_name"]))
    fits = expected is None or isinstance(value, expected)
    return "" if fits else f"{notebook.name}: {name} should be {entry['inferred_type_name']}, and is {value!r}."


def parameters(notebooks: list[Path], asked: dict[str, Any]) -> Check:
    """Check that every notebook takes the parameters it will be given."""
    found = []
    for notebook in notebooks:
        try:
            found += complaints(notebook, given(notebook, asked))
        except (ValueError, KeyError, AttributeError) as error:
            found.append(f"{notebook} cannot be read as a notebook: {str(error)[:200]}")
    return Check("notebooks", not found, " ".join(found) or f"{len(notebooks)} with valid parameters")
