"""The other side of lib.benchmark: open_clip_train, as somebody who installed open_clip_torch would use it.

Its own `train_one_epoch`, `CsvDataset`, DataLoader, transform, tokenizer and optimiser; the pictures are JPEG files of
the size that the model takes (its best case: photographs as they come take longer to decode). Two things are given to
it that it would not have by itself: the compact vocabulary and, if asked, a short context.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip import get_tokenizer
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from lib import models
from lib.benchmark_work import waiter
from lib.data import Prepared
from lib.recipes import Recipe

NEEDS = {"braceexpand": "0.1.7", "webdataset": "1.0.2"}  # what open_clip_train imports and open_clip_torch leaves out
WARM_UP = 2  # steps before the clock starts


@dataclass(frozen=True)
class Peer:
    """One training by open_clip_train that can be continued by an epoch at a time."""

    model: CLIP
    data: Any
    optimiser: torch.optim.AdamW
    args: Any


def missing() -> list[str]:
    """What has to be installed before open_clip_train can be measured, as `name==version`."""
    return [f"{name}=={version}" for name, version in NEEDS.items() if find_spec(name) is None]


def prepare_peer(recipe: Recipe, prepared: Prepared, context: int, batches: int, folder: Path) -> Peer:
    """Everything `train_one_epoch` needs, for an epoch of `batches` batches; the pictures are written to `folder`."""
    from open_clip_train.data import get_csv_dataset

    where = models.device()
    rows = np.concatenate([prepared.subsets[name] for name in recipe.trained_on])
    table = _written(prepared, np.resize(rows, batches * recipe.batch), folder)
    args = _arguments(recipe, table, where)
    transform = image_transform(recipe.data.pixels, is_train=True)
    tokenizer = partial(_compact, get_tokenizer("ViT-B-32"), prepared.token_ids, prepared.tokens.shape[2], context)
    data = {"train": get_csv_dataset(args, transform, is_train=True, tokenizer=tokenizer)}
    model = models.build(recipe.model, recipe.data.pixels, len(prepared.token_ids), context, recipe.seed).to(where)
    return Peer(model, data, _optimiser(model, args), args)


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


def _arguments(recipe: Recipe, table: Path, where: torch.device) -> Any:
    """open_clip_train's own defaults, but for data, batch size, precision and one DataLoader worker a core."""
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args

    words = ["--train-data", table, "--dataset-type", "csv", "--batch-size", recipe.batch, "--lr", recipe.lr]
    words += ["--workers", os.cpu_count() or 1, "--device", where.type]
    words += ["--precision", "amp_bf16" if where.type == "cuda" else "fp32"]
    args = parse_args([str(word) for word in words])
    args.distill = args.wandb = False  # open_clip_train's `main` adds these two
    init_distributed_device(args)
    return args


def _optimiser(model: CLIP, args: Any) -> torch.optim.AdamW:
    """AdamW as open_clip_train's `main` makes it."""
    named = list(model.named_parameters())
    free = [p for name, p in named if p.ndim < 2 or "bias" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "bias" in name)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": args.wd}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)


def rate(peer: Peer) -> float:
    """Pairs a second of one `train_one_epoch`; the start of the workers and the first steps are not counted."""
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    steps: list[float] = []
    schedule = cosine_lr(peer.optimiser, peer.args.lr, 0, 10_000)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        scheduler = _clocked(schedule, steps, waiter(torch.device(peer.args.device)))
        train_one_epoch(peer.model, peer.data, ClipLoss(), 0, peer.optimiser, None, scheduler, None, peer.args)
    return peer.args.batch_size * (len(steps) - WARM_UP) / (perf_counter() - steps[WARM_UP])


def _clocked(schedule: Callable[[int], float], steps: list[float], wait: Callable[[], None]) -> Callable[[int], None]:
    """The learning rate schedule, which is called at the start of every step, also noting when that was."""

    def scheduler(step: int) -> None:
        if len(steps) == WARM_UP:
            wait()
        steps.append(perf_counter())
        schedule(step)

    return scheduler
