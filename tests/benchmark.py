"""How fast training and scoring are on this machine, side by side with open_clip_train, measured in turns.

    python tests/benchmark.py [FILE]        keep the numbers in FILE, as JSON; ten minutes on two idle cores

Images and captions are made up, with sizes and caption lengths as in Flickr8k. It needs the test tools."""

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from timeit import Timer
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
from lib.data import Dataset, split
from lib.recipes import SCALES, Recipe, model_config

WORDS = 8000  # vocabulary of the made-up captions, near Flickr8k's 8,095
CAPTION_TOKENS = (14.4, 3.9)  # mean and deviation of Flickr8k's caption lengths, start and end token included
CONTEXTS = (77, 24)  # tokens that open_clip_train is given: its usual context, and a short one


def made_up(batch: int, steps: int) -> tuple[Recipe, Dataset]:
    """Return the laptop recipe for photographs, with `steps` batches per epoch, and pairs to train it on."""
    recipe = replace(SCALES["laptop"].photos, batch=batch, epochs=3)
    config = replace(recipe.data, shared=steps * batch - 100, pool=200, external=100, test=100)
    n, rng, generator = sum(config.sizes().values()), np.random.default_rng(0), torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(n, 3, 6, 6, generator=generator) * 255, size=config.pixels, mode="bilinear")
    images = (smooth + 12 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8).numpy()
    words = [word[:-4] for word in get_tokenizer("ViT-B-32").encoder if re.fullmatch(r"[a-z]+</w>", word)][:WORDS]
    lengths = rng.normal(*CAPTION_TOKENS, n).round().clip(3, config.context).astype(int) - 2
    captions = [[" ".join(rng.choice(words, length))] for length in lengths]
    ids = encode(captions, 1, config.context)
    tokens, token_ids = compact(ids, ids)
    rows: dict[str, Any] = {"images": images, "captions": captions, "originals": captions, "pair_ids": np.arange(n)}
    rows |= {"ids": ids, "tokens": tokens, "token_ids": token_ids, "class_names": (), "fingerprint": "", "said": ""}
    rows |= dict.fromkeys(("shares", "targets"), np.zeros((n, 0), np.float32))
    table = pd.DataFrame({"corruption": "clean", "share_planned": 0.0}, index=range(n))
    return replace(recipe, data=config), Dataset(table=table, config=config, subsets=split(n, config), **rows)


def train_rate(recipe: Recipe, data: Dataset) -> float:
    """Return pairs per second of our loop, the first epoch not counted."""
    model, rows, start = train.fresh(recipe, data).train(), data.training_rows(recipe), 0.0
    pairs, optimiser = train.to_device(data, rows, models.device()), train.make_optimiser(model, recipe)
    for epoch in range(recipe.epochs):
        train.run_epoch(recipe, epoch, pairs, model, optimiser)  # reads the loss, and so waits for a GPU
        start = start or perf_counter()
    return len(rows) // recipe.batch * recipe.batch * (recipe.epochs - 1) / (perf_counter() - start)


def score_rate(recipe: Recipe, data: Dataset) -> float:
    """Return pairs scored per second with 5 views: pool and external pairs, of an untrained model."""
    model, start = train.fresh(recipe, data).eval(), perf_counter()
    return len(scores.measure(model, recipe, data, views=5)) / (perf_counter() - start)


def peer(recipe: Recipe, data: Dataset, context: int, precision: str, folder: Path) -> Callable[[], float]:
    """Return a function that trains one epoch with open_clip_train, as somebody who installed open_clip_torch would; it
    returns its pairs per second. Small JPEG files, the compact vocabulary and a short context are its best case."""
    from open_clip_train.data import get_csv_dataset
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    rows = np.resize(data.training_rows(recipe), 6 * recipe.batch)
    for row in np.unique(rows):
        Image.fromarray(data.images[row].transpose(1, 2, 0)).save(folder / f"{row}.jpg", quality=95)
    table = {"filepath": [folder / f"{row}.jpg" for row in rows], "title": [data.captions[row][0] for row in rows]}
    pd.DataFrame(table).to_csv(folder / "pairs.csv", sep="\t")
    words = f"--dataset-type csv --train-data {folder}/pairs.csv --batch-size {recipe.batch} --lr {recipe.lr}"
    words += f" --precision {'amp_' * (precision == 'bf16')}{precision} --workers {cpu_count()}"
    args, known = parse_args([*words.split(), "--device", models.device().type]), get_tokenizer("ViT-B-32")
    args.distill = args.wandb = False  # open_clip_train's `main` adds these two
    init_distributed_device(args)

    def tokenize(texts: list[str]) -> torch.Tensor:
        ids = np.searchsorted(data.token_ids, known(texts, context_length=data.tokens.shape[2]).numpy())
        return F.pad(torch.from_numpy(ids), (0, context - ids.shape[1]))

    loader = {"train": get_csv_dataset(args, image_transform(recipe.data.pixels, True), True, tokenizer=tokenize)}
    model = models.build(model_config(recipe.model), recipe.data.pixels, len(data.token_ids), context, recipe.seed)
    optimiser = train.make_optimiser(model.to(models.device()), recipe)

    def rate() -> float:
        begun: list[float] = []  # when each step began; the first two are not counted
        schedule = lambda step: begun.append(perf_counter())  # noqa: E731
        train_one_epoch(model, loader, ClipLoss(), 0, optimiser, None, schedule, None, args)
        return recipe.batch * (len(begun) - 2) / (perf_counter() - begun[2])

    return rate


def operations(recipe: Recipe, data: Dataset) -> float:
    """Return the floating-point operations of the model's matrix products per trained pair; backward counts twice."""
    side, n, tokens = recipe.data.pixels, recipe.batch, data.tokens.shape[2]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.build(model_config(recipe.model), side, 1, tokens, seed=0)
        out = model(torch.zeros(n, 3, side, side), torch.zeros(n, tokens, dtype=torch.long))
        ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    return 3 * counter.get_total_flops() / n


def matrix_peak() -> float:
    """Return GFLOP/s of the fastest square matrix product here, on all cores, in the precision of training."""
    dtype, best = torch.bfloat16 if models.precision() == "bf16" else torch.float32, 0.0
    for side in (512, 1024, 2048, 8192)[: 4 if models.device().type == "cuda" else 3]:
        both = {name: torch.randn(side, side, device=models.device()).to(dtype) for name in "ab"}
        count, seconds = Timer("float((a @ b)[0, 0])", globals=both).autorange()  # reads a number: waits for a GPU
        best = max(best, count * 2 * side**3 / seconds / 1e9)
    return best


def main() -> None:
    """Measure in turns, print the table and keep it."""
    recipe, data = made_up(256, steps=20 if torch.cuda.is_available() else 3)
    recipes = [replace(recipe, seed=seed) for seed in range(runs.jobs())]  # as many models as notebooks train at once
    ours = lambda work: sum(runs.side_by_side("", lambda one, on_epoch: work(one, data), recipes))  # noqa: E731
    best, at_once = models.precision(), f"{len(recipes)} at once, pairs/s"
    contestants: dict[tuple[str, str], Callable[[], float]] = {}  # row, precision -> what measures it once
    with TemporaryDirectory() as folder:
        for kind in ("fp32", "bf16") if best == "bf16" or torch.cpu._is_avx512_bf16_supported() else ("fp32",):
            contestants[f"matrix-product peak, {kind}, GFLOP/s", kind] = matrix_peak
            contestants[f"ours, {kind}, {at_once}", kind] = partial(ours, train_rate)
            for context in CONTEXTS:
                row = f"open_clip_train, {kind}, {context} tokens, pairs/s"
                contestants[row, kind] = peer(recipe, data, context, kind, Path(folder))
        contestants["scoring, 5 views, pairs/s", best] = partial(ours, score_rate)
        found: dict[str, list[float]] = {name: [] for name, _ in contestants}
        for (name, kind), measure in 3 * [*contestants.items()]:  # A B C A B C …: what slows the machine slows them all
            os.environ["CLIPMEM_PRECISION"] = kind
            found[name].append(measure())
    fastest, cost = found[f"ours, {best}, {at_once}"], operations(recipe, data) / 1e9
    for context in CONTEXTS:  # theirs in the precision that is faster for them
        theirs = max((found[n] for n in found if n.endswith(f"{context} tokens, pairs/s")), key=statistics.median)
        found[f"ours / open_clip_train, {context} tokens"] = [a / b for a, b in zip(fastest, theirs, strict=True)]
    peaks = found[f"matrix-product peak, {best}, GFLOP/s"]
    found["ours, share of the peak, %"] = [100 * a * cost / b for a, b in zip(fastest, peaks, strict=True)]
    for name, values in found.items():
        print(f"{name:<44}{statistics.median(values):>9.1f}   {min(values):.1f} – {max(values):.1f}")
    if sys.argv[1:]:
        about = {"cores": cpu_count(), "device": models.device().type, "precision": best, "rows": found}
        store.write_json(Path(sys.argv[1]), about | {"system": platform.platform(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
