"""How fast training and scoring are on this machine, side by side with open_clip_train: one table, measured in turns.

    python -m lib.benchmark [--dataset PATH] [--json FILE]

Five minutes on two cores. Nothing else should run meanwhile. Without --dataset the pictures and captions are made up,
with sizes and caption lengths as in Flickr8k. The rows on open_clip_train need two packages more than the project.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lib import benchmark_peer, models, store, sweep
from lib.benchmark_probe import probe
from lib.benchmark_turns import (
    ROUNDS,
    busy_seconds,
    in_turns,
    side_by_side,
    timed_scoring,
    timed_training,
    workload,
)
from lib.benchmark_work import loss_gaps, matrix_peak, operations, run_length
from lib.data import Prepared
from lib.recipes import SCALES, Recipe, slug

SAME = 1e-4  # largest difference of two losses (about 5.5) that is still rounding
IDLE = 0.1  # cores that others may take
PAPER_STEPS = 70_000 * 100  # pairs a model of the paper is trained on, times epochs
PAPER_SCORED = 20_000  # pairs it scores: 5,000 of each of four subsets
CONTEXTS = (77, 24)  # tokens that open_clip_train is given: its usual context, and a short one
_SPREAD = ("median", "min", "max")
NO_ACCELERATOR = "no accelerator at hand"
VERSIONS = ("torch", "torchvision", "open_clip_torch", "numpy", "braceexpand", "webdataset")


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity and every measurement of it; none where it could not be measured."""

    group: str
    name: str
    unit: str
    values: tuple[float, ...] = ()
    note: str = ""

    def described(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        v = self.values
        found = {"median": statistics.median(v), "min": min(v), "max": max(v)} if v else dict.fromkeys(_SPREAD)
        return {"group": self.group, "name": self.name, "unit": self.unit, **found, "n": len(v), "note": self.note}


def training_rows(recipe: Recipe, prepared: Prepared, steps: int) -> list[Row]:
    """Training, scoring and the peak in turns, and what follows from them."""
    augmentations = SCALES["laptop"].augmentations
    contestants: dict[str, Callable[[], float]] = {
        "peak": matrix_peak,
        "ours": lambda: side_by_side(recipe, prepared, sweep.side_by_side()),
        "alone": lambda: side_by_side(recipe, prepared, 1),
        "all cores": lambda: timed_training(recipe, prepared),
        "scoring": lambda: timed_scoring(recipe, prepared, augmentations),
    }
    with TemporaryDirectory() as folder:
        if not benchmark_peer.missing():
            for context in CONTEXTS:
                peer = benchmark_peer.prepare_peer(recipe, prepared, context, 2 * steps, Path(folder))
                contestants[f"{context}"] = lambda peer=peer: benchmark_peer.rate(peer)  # type: ignore[misc]
        began, before = perf_counter(), busy_seconds()
        found = in_turns(contestants)
    others = _others_row(before, busy_seconds(), perf_counter() - began)
    return [others, *_speed_rows(found), *_share_rows(recipe, prepared, found), *_scoring_rows(found, augmentations)]


def _others_row(before: float | None, after: float | None, seconds: float) -> Row:
    """How much of the machine was not ours meanwhile. Where it is not near 0 even the ratios are wrong: an operation
    that runs on all cores waits for the slowest, so a busy core costs open_clip_train and the peak more than us."""
    used = () if before is None or after is None else (max(0.0, after - before) / seconds,)
    busy = any(value > IDLE for value in used)
    note = "NOT VALID: measure again on an idle machine, speeds and ratios below are wrong" if busy else ""
    return Row("machine", "cores taken by others while it was measured", "cores", used, note)


def _speed_rows(found: dict[str, tuple[float, ...]]) -> list[Row]:
    many, lacking = sweep.side_by_side(), benchmark_peer.missing()
    note = f"to measure it: pip install {' '.join(lacking)}" if lacking else ""
    rows = [
        Row("training", f"ours, {many} at once, as notebooks train", "pairs/s", found["ours"]),
        Row("training", "ours, one model, as notebooks train it alone", "pairs/s", found["alone"]),
        Row("training", "ours, one model on all cores", "pairs/s", found["all cores"]),
    ]
    for context in CONTEXTS:
        theirs = found.get(f"{context}", ())
        rows.append(Row("training", f"open_clip_train, {context} tokens", "pairs/s", theirs, note))
        ratio = tuple(a / b for a, b in zip(found["ours"], theirs, strict=False))
        rows.append(Row("training", f"ours / open_clip_train, {context} tokens", "times", ratio, note))
    return rows


def _share_rows(recipe: Recipe, prepared: Prepared, found: dict[str, tuple[float, ...]]) -> list[Row]:
    rows, size = np.concatenate([prepared.subsets[name] for name in recipe.trained_on]), len(prepared.token_ids)
    model = models.build(recipe.model, recipe.data.pixels, size, prepared.tokens.shape[2], 0)
    table = [Row("arithmetic", "matrix-product peak, all cores", "GFLOP/s", found["peak"])]
    for executed, what in ((False, "the model's products"), (True, "products that our loop executes")):
        length = run_length(prepared, rows, recipe.batch, models.GROUPS if executed else 1)
        work = operations(model, round(length), recipe.batch, executed) / 1e9
        share = tuple(100 * a * work / b for a, b in zip(found["ours"], found["peak"], strict=True))
        note = f"{1000 * work:.0f} MFLOP a pair at {length:.1f} tokens"
        table.append(Row("arithmetic", f"share of the peak: {what}", "%", share, note))
    return table


def _scoring_rows(found: dict[str, tuple[float, ...]], augmentations: int) -> list[Row]:
    rates = zip(found["scoring"], found["ours"], strict=True)
    share = tuple(100 * (PAPER_SCORED / scored) / (PAPER_STEPS / trained) for scored, trained in rates)
    note = f"{PAPER_SCORED:,} pairs scored, {PAPER_STEPS:,} trained on, by f and g each"
    name = f"scoring, {augmentations} augmented views and one plain"
    return [
        Row("scoring", name, "pairs/s", found["scoring"]),
        Row("scoring", "cost as a share of training, the paper's numbers", "%", share, note),
    ]


def same_rows(recipe: Recipe, prepared: Prepared) -> list[Row]:
    """Whether both sides train the same function: |our loss - open_clip's| on the same batches."""
    rows = []
    for context in sorted({prepared.tokens.shape[2], max(CONTEXTS)}):
        gaps = loss_gaps(recipe, prepared, context, batches=3)
        rows.append(Row("same function", f"difference of loss, open_clip at {context} tokens", "nats", tuple(gaps)))
    return rows


def probe_rows() -> list[Row]:
    """Start-up, memory and growth, each measured in a fresh Python."""
    print("start-up, memory and growth ...", file=sys.stderr, flush=True)
    starts, many = [probe("first_step()") for _ in range(ROUNDS)], sweep.side_by_side()
    whole = sum(SCALES["laptop"].photos.data.sizes().values())
    training = probe(f"grown('laptop', 48, {whole}, {many})")
    rows = [
        Row("start-up", "import, build, first step", "s", tuple(s["seconds"] for s in starts)),
        Row("memory", "import, build, first step", "MB", tuple(s["megabytes"] for s in starts)),
        Row("memory", f"{many} at once, {whole:,} pairs at 48 px", "MB", (training["megabytes"],)),
    ]
    for pairs in (1_000, 10_000, 100_000):
        found = probe(f"grown('laptop', 32, {pairs}, 1)")
        rows.append(Row("growth", f"{pairs:,} pairs at 32 px: a step", "ms", (found["milliseconds"],)))
        rows.append(Row("growth", f"{pairs:,} pairs at 32 px: peak memory", "MB", (found["megabytes"],)))
    return rows


def accelerator_rows(dataset: str | None) -> list[Row]:
    """What is asked of a GPU; empty rows without one."""
    names = (
        ("ViT-B/32 at 224 px, batch 1,024: share of the bf16 peak", "%"),
        ("gpu scale's model: ours / open_clip_train", "times"),
        ("mis-captioned finding, 5 seeds, trained and scored", "min"),
    )
    if not torch.cuda.is_available():
        return [Row("GPU", name, unit, note=NO_ACCELERATOR) for name, unit in names]
    from lib import benchmark_gpu

    found = (benchmark_gpu.vit_share(), benchmark_gpu.against_peer(), benchmark_gpu.finding_minutes(dataset))
    return [Row("GPU", *label, *result) for label, result in zip(names, found, strict=True)]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Python and the packages that decide the speed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def table(rows: list[Row]) -> str:
    """The rows as text: median, then smallest to largest and how many where there are several."""
    lines = []
    for row in rows:
        d = row.described()
        middle = "—" if not row.values else _number(d["median"])
        spread = f"{_number(d['min'])} – {_number(d['max'])} ({d['n']})" if d["n"] > 1 else ""
        lines.append(f"{row.group:<14}{row.name:<62}{middle:>9} {row.unit:<8}{spread:<24}{row.note}".rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, keep it. The exit status is 1 where the two sides do not train the same function."""
    parser = argparse.ArgumentParser(prog="python -m lib.benchmark", description="Measure speed and memory in turns.")
    parser.add_argument("--dataset", help="captioned pictures to use instead of made-up ones: a preset, name or path")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep machine, versions and all rows in FILE")
    args = parser.parse_args(argv)
    steps = 20 if torch.cuda.is_available() else 3
    recipe, prepared = workload(args.dataset, steps)
    same = same_rows(recipe, prepared)
    rows = [*training_rows(recipe, prepared, steps), *same, *probe_rows(), *accelerator_rows(args.dataset)]
    print(table(rows))
    about = {"machine": machine(), "versions": versions(), "date": datetime.date.today().isoformat()}
    if args.json:
        data = slug(args.dataset) if args.dataset else "synthetic"
        store.write_json(args.json, {**about, "data": data, "rows": [row.described() for row in rows]})
    return int(max(value for row in same for value in row.values) > SAME)


if __name__ == "__main__":
    sys.exit(main())
