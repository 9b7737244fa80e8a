"""What lib.benchmark measures in its own process: made-up pairs, our loop and our scoring, arithmetic, a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from torch.utils.flop_counter import FlopCounterMode

from lib import memorization, models, pairs, store, sweep, tables, train
from lib.captions import tokenize
from lib.data import Prepared, prepare, split
from lib.plans import null_recipe
from lib.recipes import SCALES, Data, Recipe

WORDS = 8000  # vocabulary of the made-up captions, near Flickr8k's 8,095
CAPTION_TOKENS = (14.4, 3.9)  # mean and deviation of Flickr8k's caption lengths, start and end token included
PEAK_SIZES = (512, 1024, 2048)  # sides of the square products that the peak is searched among
PEAK_SECONDS = 0.4  # how long each of them is repeated
ROUNDS = 3  # how often every contestant has its turn
GPU_STEPS = 20  # batches an epoch of the GPU-sized trainings
EPOCHS = 3  # of our loop in a turn; the first is not timed


# --- made-up pairs ---


def workload(dataset: str | None, steps: int) -> tuple[Recipe, Prepared]:
    """The laptop recipe for photographs with an epoch of `steps` batches, and 100 pairs in every other subset."""
    recipe = replace(SCALES["laptop"].photos, batch=256)
    data = replace(recipe.data, dataset=dataset or "synthetic", shared=steps * recipe.batch - 100)
    data = replace(data, candidate=100, independent=100, external=100, disjoint=100)
    prepared = prepare(data, store.root() / "cache") if dataset else synthetic(data)
    return replace(recipe, data=prepared.data), prepared


def synthetic(data: Data) -> Prepared:
    """A captioned set of the sizes in `data`: smooth pictures with noise, and captions of common words whose lengths
    are distributed as Flickr8k's. It takes as long to train on as photographs, and says nothing else about them."""
    n = sum(data.sizes().values())
    known = (_pictures(n, data.pixels), captions(n, data.context), np.arange(n))
    return made_up(data, pairs.Pairs("synthetic", *known, None, (), None, None, fingerprint="synthetic"))


def made_up(data: Data, loaded: pairs.Pairs) -> Prepared:
    """`data.prepare` without a source: nothing is corrupted, and there is no table."""
    with TemporaryDirectory() as folder:
        tokens, token_ids = tokenize(loaded, loaded.captions, data.context, Path(folder))
    n = len(loaded.images)
    none = np.zeros((n, 0), np.float32), (), pd.DataFrame(), "synthetic", np.zeros(n, bool)
    return Prepared(data, loaded, split(loaded, data), loaded.captions, tokens, token_ids, *none)


def captions(n: int, context: int) -> list[list[str]]:
    """One caption of common words for each of n pairs."""
    from open_clip import get_tokenizer  # takes seconds to import

    rng = np.random.default_rng(0)
    whole = (word.removesuffix("</w>") for word in get_tokenizer("ViT-B-32").encoder if word.endswith("</w>"))
    words = np.array([word for word in whole if word.isalpha() and word.isascii()][:WORDS])
    lengths = rng.normal(*CAPTION_TOKENS, n).round().clip(3, context).astype(int) - 2
    return [[" ".join(rng.choice(words, length))] for length in lengths]


def _pictures(n: int, pixels: int) -> np.ndarray:
    """uint8 `[n, 3, pixels, pixels]`."""
    generator, images = torch.Generator().manual_seed(0), np.empty((n, 3, pixels, pixels), np.uint8)
    for start in range(0, n, 1000):
        coarse = torch.rand(len(images[start : start + 1000]), 3, 6, 6, generator=generator) * 255
        smooth = F.interpolate(coarse, size=pixels, mode="bilinear")
        images[start : start + 1000] = (smooth + 12 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255)
    return images


# --- our loop and our scoring, as notebooks run them ---


class _Enough(Exception):
    """Ends a training that was only timed."""


def timed_training(recipe: Recipe, prepared: Prepared) -> float:
    """Pairs a second of `train.train` on the threads that the caller has, the first epoch not counted."""
    ends: list[float] = []

    def note(done: float, total: float) -> None:
        ends.append(perf_counter())
        if len(ends) == EPOCHS:
            raise _Enough

    with TemporaryDirectory() as folder, suppress(_Enough):
        train.train(recipe, prepared, Path(folder), note)
    seen = sum(len(prepared.subsets[name]) for name in recipe.trained_on) // recipe.batch * recipe.batch
    return seen * (len(ends) - 1) / (ends[-1] - ends[0])


def side_by_side(recipe: Recipe, prepared: Prepared, at_once: int) -> float:
    """Pairs a second of several models together, run as notebooks run them."""
    recipes = [replace(recipe, seed=seed) for seed in range(at_once)]
    return sum(sweep.each("benchmark", lambda r, note: timed_training(r, prepared), recipes))


def timed_scoring(recipe: Recipe, prepared: Prepared, augmentations: int) -> float:
    """Scored pairs a second of `memorization.measure`, run as notebooks run it."""
    recipes = [replace(recipe, seed=seed) for seed in range(sweep.side_by_side())]
    scored = sum(len(rows) for rows in memorization.scored_rows(prepared).values())

    def work(r: Recipe, note: Any) -> None:
        memorization.measure(untrained(r, prepared).eval(), r.objective, prepared, augmentations)

    start = perf_counter()
    sweep.each("benchmark", work, recipes)
    return scored * len(recipes) / (perf_counter() - start)


def untrained(recipe: Recipe, prepared: Prepared) -> CLIP:
    """An untrained model on the device."""
    return train.fresh(recipe, prepared)


def in_turns(contestants: dict[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
    """Every contestant's measurements, taken A B C A B C ..."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS):
        for name, measure in contestants.items():
            print(f"turn {turn + 1} of {ROUNDS}: {name} ...", file=sys.stderr, flush=True)
            values[name].append(measure())
    return {name: tuple(v) for name, v in values.items()}


def busy_seconds() -> float | None:
    """Core seconds that everybody but this process and its finished children has used or, on a virtual machine, been
    given instead of it, since the start of the machine; None where the system does not say."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, stolen = (t / os.sysconf("SC_CLK_TCK") for t in ticks)
    return user + nice + system + irq + softirq + stolen - sum(os.times()[:4])


# --- arithmetic ---


def operations(name: str, pixels: int, tokens: int, batch: int, executed: bool = False) -> float:
    """Floating-point operations of the matrix products that training on one pair takes; nothing else counts.

    torch counts them forward: 2abc for an [a, b] by a [b, c] matrix, attention whole, masked or not. Backward is twice
    that.

    Args:
        name: of the model, as for models.build.
        tokens: length of the captions as run.
        batch: pairs a batch, for the logits.
        executed: count only what lib.models runs: the last block of each tower for its pooled position alone.
    """
    with torch.device("meta"):
        model = models.build(name, pixels, 1, tokens, seed=0)
        images, words = torch.zeros(batch, 3, pixels, pixels), torch.zeros(batch, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        if executed:
            image, text = models.encode_image(model, images), models._encode_text(model, words)
        else:
            image, text = model.encode_image(images, normalize=True), model.encode_text(words, normalize=True)
        ClipLoss()(image, text, model.logit_scale.exp())
    return 3 * counter.get_total_flops() / batch


def run_length(prepared: Prepared, rows: np.ndarray, batch: int, groups: int = 1) -> float:
    """Mean length in tokens of captions as run, when each of `groups` of like length in a batch is cut to its longest.

    One group: cut to the longest of the batch. On CUDA always the context.
    """
    if models.device().type == "cuda":
        return prepared.tokens.shape[2]
    lengths, rng = (prepared.tokens[rows, 0] > 0).sum(axis=1), np.random.default_rng(0)
    batches = (np.sort(rng.choice(lengths, min(batch, len(rows)), replace=False)) for _ in range(64))
    return float(np.mean([part.max() for one in batches for part in np.array_split(one, groups)]))


def matrix_peak() -> float:
    """GFLOP/s of the fastest square matrix product here, on all cores in float32, or on a GPU in bfloat16."""
    gpu = models.device().type == "cuda"
    sizes = (*PEAK_SIZES, 4096, 8192) if gpu else PEAK_SIZES
    return max(_product_rate(size, torch.bfloat16 if gpu else torch.float32) for size in sizes)


def _product_rate(size: int, kind: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=models.device()).to(kind) for _ in range(2))
    out = torch.mm(a, b)
    wait()
    done, start = 0, perf_counter()
    while perf_counter() - start < PEAK_SECONDS:
        for _ in range(4):
            torch.mm(a, b, out=out)
        wait()
        done += 4
    return done * 2 * size**3 / (perf_counter() - start) / 1e9


def wait() -> None:
    """Return when the device has done all it was given."""
    if models.device().type == "cuda":
        torch.cuda.synchronize()


# --- on a GPU ---


def vit_share() -> tuple[tuple[float, ...], str]:
    """Share of the bf16 peak, in %, that ViT-B/32 at 224 px reaches with batch 1,024 and made-up pairs, and a note."""
    data = Data("synthetic", 224, GPU_STEPS * 1024, 0, 0, 0, 0, context=77)
    recipe, prepared = Recipe(data, trained_on=("shared",), model="paper", batch=1024), synthetic(data)
    work = operations("paper", 224, prepared.tokens.shape[2], 1024) / 1e9
    found = in_turns({"peak": matrix_peak, "ViT-B/32": lambda: timed_training(recipe, prepared)})
    share = tuple(100 * r * work / p for r, p in zip(found["ViT-B/32"], found["peak"], strict=True))
    return share, f"{work:.1f} GFLOP a pair; peak {max(found['peak']) / 1000:.0f} TFLOP/s"


def finding_minutes(dataset: str | None) -> tuple[tuple[float, ...], str]:
    """Minutes to train and score all models of the mis-captioned finding, from an empty store."""
    if dataset is None:
        return (), "give --dataset flickr8k"
    scale = SCALES["gpu"]
    prepared = prepare(replace(scale.photos.data, dataset=dataset), store.root() / "cache")
    with TemporaryDirectory() as folder, patch.dict(os.environ, CLIPMEM_RUNS=folder):
        start = perf_counter()
        base, seeds = replace(scale.photos, data=prepared.data), range(5)
        tables.scores(base, seeds, prepared, scale.augmentations, null_recipe(base, seeds), tables.ALL)
        return ((perf_counter() - start) / 60,), ""
