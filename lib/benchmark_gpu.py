"""The rows of lib.benchmark that need a GPU. Each returns its measurements and a note."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from unittest.mock import patch

from lib import benchmark_peer, models, store, sweep
from lib.benchmark_turns import in_turns, side_by_side, timed_training
from lib.benchmark_work import matrix_peak, operations, synthetic
from lib.data import prepare
from lib.recipes import SCALES, Data, Recipe

STEPS = 20  # batches an epoch of the GPU-sized trainings

Found = tuple[tuple[float, ...], str]


def vit_share() -> Found:
    """Share of the bf16 peak, in %, that ViT-B/32 at 224 px reaches with batch 1,024 and made-up pairs."""
    data = Data("synthetic", 224, STEPS * 1024, 0, 0, 0, 0, context=77)
    recipe = Recipe(data, trained_on=("shared",), model="paper", batch=1024)
    prepared = synthetic(data)
    model = models.build("paper", 224, len(prepared.token_ids), prepared.tokens.shape[2], 0)
    work = operations(model, prepared.tokens.shape[2], 1024) / 1e9
    found = in_turns({"peak": matrix_peak, "ViT-B/32": lambda: timed_training(recipe, prepared)})
    share = tuple(100 * r * work / p for r, p in zip(found["ViT-B/32"], found["peak"], strict=True))
    return share, f"{work:.1f} GFLOP a pair; peak {max(found['peak']) / 1000:.0f} TFLOP/s"


def against_peer() -> Found:
    """How many times as fast as open_clip_train (77 tokens, bf16, one worker a core) the gpu scale's model trains."""
    base = SCALES["gpu"].photos
    data = replace(base.data, dataset="synthetic", shared=STEPS * base.batch, candidate=0, independent=0, external=0)
    recipe, prepared = replace(base, data=data, trained_on=("shared",)), synthetic(data)
    if lacking := benchmark_peer.missing():
        return (), f"to measure it: pip install {' '.join(lacking)}"
    with TemporaryDirectory() as folder:
        peer = benchmark_peer.prepare_peer(recipe, prepared, 77, STEPS, Path(folder))
        ours = {"ours, gpu scale": lambda: side_by_side(recipe, prepared, sweep.side_by_side())}
        found = in_turns({**ours, "theirs, gpu scale": lambda: benchmark_peer.rate(peer)})
    return tuple(x / y for x, y in zip(*found.values(), strict=True)), ""


def finding_minutes(dataset: str | None) -> Found:
    """Minutes to train and score all models of the mis-captioned finding with 5 seeds, from an empty store."""
    if dataset is None:
        return (), "give --dataset flickr8k"
    scale = SCALES["gpu"]
    prepared = prepare(replace(scale.photos.data, dataset=dataset), store.root() / "cache")
    with TemporaryDirectory() as folder, patch.dict(os.environ, CLIPMEM_RUNS=folder):
        start = perf_counter()
        sweep.scores(replace(scale.photos, data=prepared.data), range(5), prepared, scale.augmentations)
        return ((perf_counter() - start) / 60,), ""
