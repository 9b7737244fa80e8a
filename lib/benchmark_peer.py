"""The other side of lib.benchmark: open_clip_train, as somebody who installed open_clip_torch would use it.

Its own `train_one_epoch`, `CsvDataset`, DataLoader, transform, tokenizer and optimiser; the pictures are JPEG files of
the size that the model takes (its best case: photographs as they come take longer to decode). Two things are given to
it that it would not have by itself: the compact vocabulary and, if asked, a short context.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip import get_tokenizer
from open_clip.loss import ClipLoss
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from lib import models, sweep
from lib.benchmark_work import GPU_STEPS, in_turns, side_by_side, synthetic, wait
from lib.data import Prepared
from lib.recipes import SCALES, Data, Recipe

NEEDS = {"braceexpand": "0.1.7", "webdataset": "1.0.2"}  # what open_clip_train imports and open_clip_torch leaves out
WARM_UP = 2  # steps before the clock starts


def missing() -> list[str]:
    """What has to be installed before open_clip_train can be measured, as `name==version`."""
    return [f"{name}=={version}" for name, version in NEEDS.items() if find_spec(name) is None]


def to_install() -> str:
    """A note on what is missing, empty where nothing is."""
    lacking = missing()
    return f"to measure it: pip install {' '.join(lacking)}" if lacking else ""


def prepare_peer(recipe: Recipe, prepared: Prepared, context: int, batches: int, folder: Path) -> Callable[[], float]:
    """Its training, ready for epochs of `batches` batches: every call trains one more and returns pairs a second.

    The start of the workers and the first steps are not counted. The pictures are written to `folder`.
    """
    from open_clip_train.data import get_csv_dataset
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    rows = np.concatenate([prepared.subsets[name] for name in recipe.trained_on])
    args = _arguments(recipe, _written(prepared, np.resize(rows, batches * recipe.batch), folder))
    tokenizer = partial(_compact, get_tokenizer("ViT-B-32"), prepared.token_ids, prepared.tokens.shape[2], context)
    data = {"train": get_csv_dataset(args, image_transform(recipe.data.pixels, True), True, tokenizer=tokenizer)}
    model = models.build(recipe.model, recipe.data.pixels, len(prepared.token_ids), context, recipe.seed)
    optimiser = _optimiser(model.to(models.device()), args)
    schedule = cosine_lr(optimiser, args.lr, 0, 10_000)

    def rate() -> float:
        begun: list[float] = []

        def clocked(step: int) -> None:  # it is called at the start of every step
            if len(begun) == WARM_UP:
                wait()
            begun.append(perf_counter())
            schedule(step)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            train_one_epoch(model, data, ClipLoss(), 0, optimiser, None, clocked, None, args)
        wait()
        return recipe.batch * (len(begun) - WARM_UP) / (perf_counter() - begun[WARM_UP])

    return rate


def _written(prepared: Prepared, rows: np.ndarray, folder: Path) -> Path:
    """The pictures as JPEG and the table of their names and captions that CsvDataset reads."""
    for row in np.unique(rows):
        Image.fromarray(prepared.pairs.images[row].transpose(1, 2, 0)).save(folder / f"{row}.jpg", quality=95)
    table = folder / "pairs.csv"
    captions = [prepared.captions[row][0] for row in rows]
    pd.DataFrame({"filepath": [folder / f"{row}.jpg" for row in rows], "title": captions}).to_csv(table, sep="\t")
    return table


def _compact(tokenizer: Any, token_ids: np.ndarray, longest: int, context: int, texts: list[str]) -> Tensor:
    """Compact ids `[texts, context]`, captions cut to `longest` tokens as ours are."""
    ids = np.searchsorted(token_ids, tokenizer(texts, context_length=longest).numpy())
    return F.pad(torch.from_numpy(ids), (0, context - longest))


def _arguments(recipe: Recipe, table: Path) -> Any:
    """open_clip_train's own defaults, but for data, batch size, precision and one DataLoader worker a core."""
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args

    kind = models.device().type
    words = ["--train-data", table, "--dataset-type", "csv", "--batch-size", recipe.batch, "--lr", recipe.lr]
    words += ["--workers", os.cpu_count() or 1, "--device", kind]
    words += ["--precision", "amp_bf16" if kind == "cuda" else "fp32"]
    args = parse_args([str(word) for word in words])
    args.distill = args.wandb = False  # open_clip_train's `main` adds these two
    init_distributed_device(args)
    return args


def _optimiser(model: torch.nn.Module, args: Any) -> torch.optim.AdamW:
    """AdamW as open_clip_train's `main` makes it."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, p in model.named_parameters():
        parts[p.ndim < 2 or "bias" in name].append(p)
    groups = [{"params": parts[1], "weight_decay": 0.0}, {"params": parts[0], "weight_decay": args.wd}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)


@torch.no_grad()
def loss_gaps(recipe: Recipe, prepared: Prepared, context: int, batches: int) -> list[float]:
    """For each of some batches, |loss of our forward pass, trimmed - loss of open_clip's own, padded to `context`|.

    Both models hold the same weights; what the longer context adds to the table of positions is never read.
    """
    rows = np.resize(np.concatenate([prepared.subsets[name] for name in recipe.trained_on]), (batches, recipe.batch))
    length, size = prepared.tokens.shape[2], len(prepared.token_ids)
    ours, theirs = (models.build(recipe.model, recipe.data.pixels, size, n, recipe.seed) for n in (length, context))
    weights = {name: t for name, t in ours.state_dict().items() if name not in ("positional_embedding", "attn_mask")}
    theirs.load_state_dict(weights, strict=False)
    theirs.positional_embedding[:length] = ours.positional_embedding
    gaps = []
    for part in rows:
        images = models.normalise(torch.from_numpy(np.ascontiguousarray(prepared.pairs.images[part])))
        tokens = torch.from_numpy(prepared.tokens[part, 0]).long()
        trimmed = tokens[:, : int((tokens > 0).sum(dim=1).max())]
        image, text = models.encode_image(ours, images), models.encode_text(ours, trimmed)
        out = theirs(images, F.pad(tokens, (0, context - length)))
        losses = (ClipLoss()(i, t, ours.logit_scale.exp()) for i, t in ((image, text), tuple(out.values())[:2]))
        gaps.append(abs(float(next(losses)) - float(next(losses))))
    return gaps


def against_peer() -> tuple[tuple[float, ...], str]:
    """How many times as fast as open_clip_train (77 tokens, bf16, one worker a core) the gpu scale's model trains."""
    base = SCALES["gpu"].photos
    data = Data("synthetic", base.data.pixels, GPU_STEPS * base.batch, 0, 0, 0, 0, context=base.data.context)
    recipe, prepared = replace(base, data=data, trained_on=("shared",)), synthetic(data)
    if lacking := to_install():
        return (), lacking
    with TemporaryDirectory() as folder:
        theirs = prepare_peer(recipe, prepared, 77, GPU_STEPS, Path(folder))
        found = in_turns({"ours": lambda: side_by_side(recipe, prepared, sweep.side_by_side()), "theirs": theirs})
    return tuple(x / y for x, y in zip(*found.values(), strict=True)), ""
