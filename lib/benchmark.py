"""How fast training and scoring are on this machine, side by side with open_clip_train: one table, measured in turns.

    python -m lib.benchmark [speed|memory] [--dataset PATH] [--json FILE]

Five minutes on two cores. Nothing else should run meanwhile. Without --dataset the pictures and captions are made up,
with sizes and caption lengths as in Flickr8k. The rows on open_clip_train need two packages more than the project.
`memory` instead trains on 70,000 pairs at 224 px, 10.5 GB of temporary disk, under a limit of 8 GB of memory.
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
from lib import benchmark_work as work
from lib.benchmark_peer import loss_gaps, to_install
from lib.benchmark_probe import probe, write_mapped
from lib.data import Prepared
from lib.recipes import SCALES, Recipe, slug

SAME = 1e-4  # largest difference of two losses (about 5.5) that is still rounding
IDLE = 0.1  # cores that others may take
PAPER_PAIRS = 70_000  # that a model of the paper is trained on
PAPER_STEPS = PAPER_PAIRS * 100  # times epochs
PAPER_SCORED = 20_000  # pairs it scores: 5,000 of each of four subsets
MEMORY = 8  # GB that must be enough to train on them
CONTEXTS = (77, 24)  # tokens that open_clip_train is given: its usual context, and a short one
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
        spread = (statistics.median(v), min(v), max(v)) if v else (None,) * 3
        found = dict(zip(("median", "min", "max"), spread, strict=True))
        return {"group": self.group, "name": self.name, "unit": self.unit, **found, "n": len(v), "note": self.note}


def training_rows(recipe: Recipe, prepared: Prepared, steps: int) -> list[Row]:
    """Training, scoring and the peak in turns, and what follows from them."""
    augmentations = SCALES["laptop"].augmentations
    contestants: dict[str, Callable[[], float]] = {
        "peak": work.matrix_peak,
        "ours": lambda: work.side_by_side(recipe, prepared, sweep.side_by_side()),
        "alone": lambda: work.side_by_side(recipe, prepared, 1),
        "all cores": lambda: work.timed_training(recipe, prepared),
        "scoring": lambda: work.timed_scoring(recipe, prepared, augmentations),
    }
    with TemporaryDirectory() as folder:
        for context in () if benchmark_peer.missing() else CONTEXTS:
            contestants[f"{context}"] = benchmark_peer.prepare_peer(recipe, prepared, context, 2 * steps, Path(folder))
        began, before = perf_counter(), work.busy_seconds()
        found = work.in_turns(contestants)
    others = _others_row(before, work.busy_seconds(), perf_counter() - began)
    return [others, *_speed_rows(found), *_share_rows(recipe, prepared, found), *_scoring_rows(found, augmentations)]


def _others_row(before: float | None, after: float | None, seconds: float) -> Row:
    """How much of the machine was not ours meanwhile. Where it is not near 0 even the ratios are wrong: an operation
    that runs on all cores waits for the slowest, so a busy core costs open_clip_train and the peak more than us."""
    used = () if before is None or after is None else (max(0.0, after - before) / seconds,)
    busy = any(value > IDLE for value in used)
    note = "NOT VALID: measure again on an idle machine, speeds and ratios below are wrong" if busy else ""
    return Row("machine", "cores taken by others while it was measured", "cores", used, note)


def _speed_rows(found: dict[str, tuple[float, ...]]) -> list[Row]:
    names = {
        "ours": f"ours, {sweep.side_by_side()} at once, as notebooks train",
        "alone": "ours, one model, as notebooks train it alone",
        "all cores": "ours, one model on all cores",
    }
    rows = [Row("training", name, "pairs/s", found[key]) for key, name in names.items()]
    for context in CONTEXTS:
        theirs = found.get(f"{context}", ())
        ratio = tuple(a / b for a, b in zip(found["ours"], theirs, strict=False))
        rows.append(Row("training", f"open_clip_train, {context} tokens", "pairs/s", theirs, to_install()))
        rows.append(Row("training", f"ours / open_clip_train, {context} tokens", "times", ratio, to_install()))
    return rows


def _share_rows(recipe: Recipe, prepared: Prepared, found: dict[str, tuple[float, ...]]) -> list[Row]:
    rows = np.concatenate([prepared.subsets[name] for name in recipe.trained_on])
    table = [Row("arithmetic", "matrix-product peak, all cores", "GFLOP/s", found["peak"])]
    for executed, what in ((False, "the model's products"), (True, "products that our loop executes")):
        length = work.run_length(prepared, rows, recipe.batch, models.GROUPS if executed else 1)
        cost = work.operations(recipe.model, recipe.data.pixels, round(length), recipe.batch, executed) / 1e9
        share = tuple(100 * a * cost / b for a, b in zip(found["ours"], found["peak"], strict=True))
        note = f"{1000 * cost:.0f} MFLOP a pair at {length:.1f} tokens"
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
    contexts = sorted({prepared.tokens.shape[2], max(CONTEXTS)})
    gaps = {context: tuple(loss_gaps(recipe, prepared, context, batches=3)) for context in contexts}
    name = "difference of loss, open_clip at {} tokens"
    return [Row("same function", name.format(context), "nats", found) for context, found in gaps.items()]


def probe_rows() -> list[Row]:
    """Start-up, memory and growth, each measured in a fresh Python."""
    print("start-up, memory and growth ...", file=sys.stderr, flush=True)
    starts, many = [probe("first_step()") for _ in range(work.ROUNDS)], sweep.side_by_side()
    whole = sum(SCALES["laptop"].photos.data.sizes().values())
    training = probe(f"grown('laptop', 256, 48, {whole}, {many})")
    rows = [
        Row("start-up", "import, build, first step", "s", tuple(s["seconds"] for s in starts)),
        Row("memory", "import, build, first step", "MB", tuple(s["megabytes"] for s in starts)),
        Row("memory", f"{many} at once, {whole:,} pairs at 48 px", "MB", (training["megabytes"],)),
    ]
    for count in (1_000, 10_000, 100_000):
        found = probe(f"grown('laptop', 256, 32, {count})")
        rows.append(Row("growth", f"{count:,} pairs at 32 px: a step", "ms", (1000 * found["step"],)))
        rows.append(Row("growth", f"{count:,} pairs at 32 px: peak memory", "MB", (found["megabytes"],)))
    return rows


def memory_rows() -> list[Row]:
    """The paper's number of pairs at its size from a mapped file, in a Python that is refused more than MEMORY."""
    rows = []
    with TemporaryDirectory() as folder:
        write_mapped(Path(folder), 224, PAPER_PAIRS)
        rows.append(Row("mapped", f"{PAPER_PAIRS:,} pairs at 224 px on disk", "GB", (PAPER_PAIRS * 3 * 224**2 / 1e9,)))
        for model, batch, steps in (("smoke", 128, 40), ("paper", 32, 2)):
            print(f"loading, then {steps} steps of the model {model} ...", file=sys.stderr, flush=True)
            found = probe(f"grown({model!r}, {batch}, 224, {PAPER_PAIRS}, 1, {steps}, {folder!r}, {MEMORY})")
            what = f"model {model}, batches of {batch}: "
            rows += [
                Row("mapped", f"{what}load, split, tokenize", "s", (found["loading"],)),
                Row("mapped", f"{what}a step", "s", (found["step"],)),
                Row("mapped", f"{what}peak of its own memory", "MB", (found["own"],), f"limit {MEMORY} GB"),
                Row("mapped", f"{what}and pages of the file", "MB", (found["megabytes"],), "these can be dropped"),
            ]
    return rows


def accelerator_rows(dataset: str | None) -> list[Row]:
    """What is asked of a GPU; empty rows without one."""
    kinds: dict[tuple[str, str], Callable[[], tuple[tuple[float, ...], str]]] = {
        ("ViT-B/32 at 224 px, batch 1,024: share of the bf16 peak", "%"): work.vit_share,
        ("gpu scale's model: ours / open_clip_train", "times"): benchmark_peer.against_peer,
        ("mis-captioned finding, 5 seeds, trained and scored", "min"): lambda: work.finding_minutes(dataset),
    }
    there = torch.cuda.is_available()
    return [Row("GPU", *k, *(measure() if there else ((), "no accelerator at hand"))) for k, measure in kinds.items()]


def about() -> dict[str, Any]:
    """What the numbers were measured on: machine, versions of what decides the speed, date."""
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    system = f"{platform.system()} {platform.machine()}"
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in VERSIONS}
    machine = {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": system}
    return {
        "machine": machine,
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.date.today().isoformat(),
    }


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
    parser.add_argument("what", nargs="?", choices=["speed", "memory"], default="speed")
    parser.add_argument("--dataset", help="captioned pictures to use instead of made-up ones: a preset, name or path")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep machine, versions and all rows in FILE")
    args = parser.parse_args(argv)
    same: list[Row] = []
    if args.what == "memory":
        rows = memory_rows()
    else:
        steps = 20 if torch.cuda.is_available() else 3
        recipe, prepared = work.workload(args.dataset, steps)
        same = same_rows(recipe, prepared)
        rows = [*training_rows(recipe, prepared, steps), *same, *probe_rows(), *accelerator_rows(args.dataset)]
    print(table(rows))
    if args.json:
        data = slug(args.dataset) if args.dataset else "synthetic"
        store.write_json(args.json, {**about(), "data": data, "rows": [row.described() for row in rows]})
    return int(any(value > SAME for row in same for value in row.values))


if __name__ == "__main__":
    sys.exit(main())
