"""How fast training and scoring are on this machine, side by side with open_clip_train, measured in turns.

    python tests/benchmark.py [FILE]        FILE: keep the numbers there, as JSON

Ten minutes on two cores; nothing else should run meanwhile. Images and captions are made up, with sizes and caption
lengths as in Flickr8k. The rows on open_clip_train need the test tools.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import cpu_count
from open_clip import get_tokenizer
from open_clip.loss import ClipLoss
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from lib import model as models
from lib import runs, scores, store, train
from lib.captions import compact, encode
from lib.data import Prepared, split
from lib.recipes import SCALES, Recipe, model_config

WORDS = 8000  # vocabulary of the made-up captions, near Flickr8k's 8,095
CAPTION_TOKENS = (14.4, 3.9)  # mean and deviation of Flickr8k's caption lengths, start and end token included
CONTEXTS = (77, 24)  # tokens that open_clip_train is given: its usual context, and a short one
WARM_UP = 2  # steps of open_clip_train before the clock starts
ROUNDS = 3  # how often every contestant has its turn
PEAK_SIZES = (512, 1024, 2048)  # sides of the square products among which the peak is searched


def made_up(batch: int, steps: int) -> tuple[Recipe, Prepared]:
    """Return the laptop recipe for photographs, with `steps` batches per epoch, and pairs to train it on."""
    recipe = replace(SCALES["laptop"].photos, batch=batch, epochs=3)
    data = replace(recipe.data, shared=steps * batch - 100, pool=200, external=100, test=100)
    n, rng, generator = sum(data.sizes().values()), np.random.default_rng(0), torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(n, 3, 6, 6, generator=generator) * 255, size=data.pixels, mode="bilinear")
    images = (smooth + 12 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8).numpy()
    known = (word.removesuffix("</w>") for word in get_tokenizer("ViT-B-32").encoder if word.endswith("</w>"))
    words = np.array([word for word in known if word.isalpha() and word.isascii()][:WORDS])
    lengths = rng.normal(*CAPTION_TOKENS, n).round().clip(3, data.context).astype(int) - 2
    captions = [[" ".join(rng.choice(words, length))] for length in lengths]
    ids = encode(captions, 1, data.context)
    tokens, token_ids = compact(ids, ids)
    none = np.zeros((n, 0), np.float32)
    table = pd.DataFrame({"corruption": "clean", "share_swapped": 0.0}, index=range(n))
    nothing = {"true_targets": none, "targets": none, "class_names": (), "table": table, "fingerprint": ""}
    rows = {"images": images, "captions": captions, "pair_ids": np.arange(n)}
    prepared = Prepared(data, split(n, data), tokens=tokens, token_ids=token_ids, **rows, **nothing)
    return replace(recipe, data=data), prepared


# --- ours, as notebooks run it ---


def train_rate(recipe: Recipe, prepared: Prepared) -> float:
    """Return pairs per second of our loop, the first epoch not counted."""
    model, ends = train.fresh(recipe, prepared).train(), []
    optimiser = train.make_optimiser(model, recipe)
    pairs = train.resident(prepared, train.training_rows(recipe, prepared), models.device())
    for epoch in range(recipe.epochs):
        train.run_epoch(recipe, epoch, pairs, model, optimiser)  # reads the loss, and so waits for a GPU
        ends.append(perf_counter())
    return len(pairs.rows) // recipe.batch * recipe.batch * (len(ends) - 1) / (ends[-1] - ends[0])


def together(work: Callable[[Recipe], float], recipe: Recipe) -> float:
    """Return the sum of the pairs per second of as many models side by side as notebooks use."""
    recipes = [replace(recipe, seed=seed) for seed in range(runs.side_by_side())]
    return sum(runs.run_parallel("", lambda r, report: work(r), recipes))


def score_rate(recipe: Recipe, prepared: Prepared, views: int) -> float:
    """Return pairs scored per second: pool and external pairs, of an untrained model."""
    model, start = train.fresh(recipe, prepared).eval(), perf_counter()
    return len(scores.measure(model, recipe, prepared, views)) / (perf_counter() - start)


def under(precision: str, work: Callable[[], float]) -> Callable[[], float]:
    """Return `work`, done in this precision."""

    def done() -> float:
        os.environ["CLIPMEM_PRECISION"] = precision
        return work()

    return done


# --- open_clip_train, as somebody who installed open_clip_torch would use it ---


def peer(recipe: Recipe, prepared: Prepared, context: int, precision: str, folder: Path) -> Callable[[], float]:
    """Return a function that trains one epoch with open_clip_train and returns its pairs per second.

    Its own loop, CSV data set, workers, transform and tokenizer; JPEG files of the model's size (its best case). It is
    given the compact vocabulary and, if asked, a short context. The first steps are not counted.
    """
    from open_clip_train.data import get_csv_dataset
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    rows = np.resize(train.training_rows(recipe, prepared), 6 * recipe.batch)
    for row in np.unique(rows):
        Image.fromarray(prepared.images[row].transpose(1, 2, 0)).save(folder / f"{row}.jpg", quality=95)
    files = [folder / f"{row}.jpg" for row in rows]
    table = pd.DataFrame({"filepath": files, "title": [prepared.captions[row][0] for row in rows]})
    table.to_csv(folder / "pairs.csv", sep="\t")
    words = ["--train-data", folder / "pairs.csv", "--dataset-type", "csv", "--batch-size", recipe.batch]
    words += ["--lr", recipe.lr, "--workers", cpu_count(), "--device", models.device().type]
    words += ["--precision", {"bf16": "amp_bf16"}.get(precision, precision)]
    args = parse_args([str(word) for word in words])
    args.distill = args.wandb = False  # open_clip_train's `main` adds these two
    init_distributed_device(args)

    def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, context_length=prepared.tokens.shape[2]).numpy()
        ids = torch.from_numpy(np.searchsorted(prepared.token_ids, ids))
        return F.pad(ids, (0, context - ids.shape[1]))

    transform, tokenizer = image_transform(recipe.data.pixels, True), partial(tokenize, get_tokenizer("ViT-B-32"))
    data = {"train": get_csv_dataset(args, transform, True, tokenizer=tokenizer)}
    model = models.build(model_config(recipe.model), recipe.data.pixels, len(prepared.token_ids), context, recipe.seed)
    optimiser = train.make_optimiser(model.to(models.device()), recipe)

    def rate() -> float:
        begun: list[float] = []
        clock = lambda step: begun.append(perf_counter())  # noqa: E731  # called at the start of every step
        train_one_epoch(model, data, ClipLoss(), 0, optimiser, None, clock, None, args)
        return recipe.batch * (len(begun) - WARM_UP) / (perf_counter() - begun[WARM_UP])

    return rate


# --- arithmetic ---


def operations(recipe: Recipe, prepared: Prepared) -> float:
    """Return the floating-point operations that the model's matrix products take per trained pair, backward twice.

    Captions count as long as the longest of their batch.
    """
    lengths, rng = (prepared.tokens[:, 0] > 0).sum(axis=1), np.random.default_rng(0)
    tokens = round(np.mean([rng.choice(lengths, recipe.batch, replace=False).max() for _ in range(64)]))
    side, n = recipe.data.pixels, recipe.batch
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.build(model_config(recipe.model), side, 1, tokens, seed=0)
        out = model(torch.zeros(n, 3, side, side), torch.zeros(n, tokens, dtype=torch.long))
        ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    return 3 * counter.get_total_flops() / n


def matrix_peak() -> float:
    """Return GFLOP/s of the fastest square matrix product here, on all cores, in the precision of training."""
    kind, best = torch.bfloat16 if models.precision() == "bf16" else torch.float32, 0.0
    for size in (*PEAK_SIZES, 8192) if models.device().type == "cuda" else PEAK_SIZES:
        a, b = (torch.randn(size, size, device=models.device()).to(kind) for _ in range(2))
        start, done = perf_counter(), 0
        while perf_counter() - start < 0.4:
            float(torch.mm(a, b)[0, 0])  # reads a number, and so waits for a GPU
            done += 1
        best = max(best, done * 2 * size**3 / (perf_counter() - start) / 1e9)
    return best


def main() -> None:
    """Measure in turns, print the table and keep it."""
    recipe, prepared = made_up(256, steps=20 if torch.cuda.is_available() else 3)
    views, side_by_side = SCALES["laptop"].augmentations, runs.side_by_side()
    precisions = ("fp32", "bf16") if models.precision() == "bf16" else ("fp32",)
    contestants: dict[str, Callable[[], float]] = {}
    for kind in precisions:
        contestants[f"matrix-product peak, {kind}, GFLOP/s"] = under(kind, matrix_peak)
        ours = lambda: together(lambda r: train_rate(r, prepared), recipe)  # noqa: E731
        contestants[f"ours, {kind}, {side_by_side} at once, pairs/s"] = under(kind, ours)
    contestants[f"scoring, {views} views, pairs/s"] = lambda: together(lambda r: score_rate(r, prepared, views), recipe)
    contexts = CONTEXTS if find_spec("braceexpand") and find_spec("webdataset") else ()
    with TemporaryDirectory() as folder:
        for context, kind in product(contexts, precisions):
            theirs = f"open_clip_train, {kind}, {context} tokens, pairs/s"
            contestants[theirs] = peer(recipe, prepared, context, kind, Path(folder))
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(ROUNDS):  # A B C A B C …: what slows the machine meanwhile slows all of them
            for name, measure in contestants.items():
                found[name].append(measure())
    fastest = found[f"ours, {precisions[-1]}, {side_by_side} at once, pairs/s"]
    for context in contexts:
        rates = [found[f"open_clip_train, {kind}, {context} tokens, pairs/s"] for kind in precisions]
        best = max(rates, key=statistics.median)  # theirs in the precision that is faster for them
        found[f"ours / open_clip_train, {context} tokens"] = [a / b for a, b in zip(fastest, best, strict=True)]
    cost = operations(recipe, prepared) / 1e9
    peaks = found[f"matrix-product peak, {precisions[-1]}, GFLOP/s"]
    found["ours, share of the peak, %"] = [100 * a * cost / b for a, b in zip(fastest, peaks, strict=True)]
    for name, values in found.items():
        print(f"{name:<44}{statistics.median(values):>9.1f}   {min(values):.1f} – {max(values):.1f}")
    if sys.argv[1:]:
        about = {"cores": cpu_count(), "device": models.device().type, "precision": precisions[-1]}
        about |= {"system": platform.platform(), "torch": torch.__version__}
        store.write_json(Path(sys.argv[1]), {**about, "rows": found})


if __name__ == "__main__":
    main()
