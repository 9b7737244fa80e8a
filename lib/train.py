"""The training loop: resident tensors, batches augmented on the device, exact resume.

Batch order, caption and crop are functions of (seed, epoch) alone, so a run that was killed and continued gives the
bits of one that was not (on the same machine and number of threads).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from torch import Tensor

from lib import models, store
from lib.data import Prepared
from lib.memorization import alignment, embed
from lib.recipes import Recipe
from lib.utility import retrieval

CHECKPOINT_SECONDS = 10.0  # a checkpoint is written at the end of an epoch, at most this often
Note = Callable[[float, float], None]


@dataclass(frozen=True)
class Resident:
    """What training reads of P pairs, on the device."""

    images: Tensor  # uint8 [N, 3, H, W]; on the CPU the data set itself, which may be memory-mapped
    rows: Tensor  # [P], where the pairs lie in `images`
    tokens: Tensor  # [P, L]


def resident(prepared: Prepared, rows: np.ndarray, where: torch.device) -> Resident:
    """The rows of a data set, with the first caption of each, as tensors on the device."""
    tokens, source = prepared.tokens[rows, 0], prepared.pairs.images
    if where.type == "cpu":
        images, places = torch.from_numpy(source), torch.from_numpy(rows)
    else:
        images, places = (
            torch.empty((len(rows), *source.shape[1:]), dtype=torch.uint8, device=where),
            torch.arange(len(rows)),
        )
        for start in range(0, len(rows), 1024):  # in parts: a large data set does not fit in the host's memory
            images[start : start + 1024] = torch.from_numpy(source[rows[start : start + 1024]])
    return Resident(images, places.to(where), torch.from_numpy(tokens).long().to(where))


def train(recipe: Recipe, prepared: Prepared, folder: Path, note: Note) -> None:
    """Train one CLIP and leave `weights.safetensors`, `history.parquet` and `looks.parquet` in `folder`.

    `history` has one row an epoch: loss, learning rate, logit scale and, at the looks, retrieval on the disjoint
    pairs. `looks` has the alignment of every scored pair at the looks (`memorization.alignment`, one plain view).
    An unfinished training found in `folder` is continued. `note(epochs done, epochs)` is called after each epoch.
    """
    where = models.device()
    model = models.build(
        recipe.model, recipe.data.pixels, len(prepared.token_ids), prepared.tokens.shape[2], recipe.seed
    )
    model.to(where).train()
    optimiser = _optimiser(model, recipe, where)
    rows = np.concatenate([prepared.subsets[name] for name in recipe.trained_on])
    pairs = resident(prepared, rows, where)
    begun, history, looks = _resume(folder, model, optimiser)
    saved = monotonic()
    for epoch in range(begun, recipe.epochs):
        history.append(_epoch(recipe, epoch, pairs, model, optimiser))
        if epoch + 1 in look_epochs(recipe):
            history[-1].update(_look(model, prepared, looks, epoch + 1))
        if monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < recipe.epochs:
            _checkpoint(folder, model, optimiser, history, looks)
            saved = monotonic()
        note(epoch + 1, recipe.epochs)
    store.write_table(folder / "history.parquet", pd.DataFrame(history))
    store.write_table(folder / "looks.parquet", pd.concat(looks, ignore_index=True))
    store.write_tensors(folder / "weights.safetensors", model.state_dict())
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def estimate_seconds(recipe: Recipe, prepared: Prepared) -> float:
    """Seconds that training the recipe will take here, from three timed steps after a warm-up; nothing is kept."""
    model = models.build(
        recipe.model, recipe.data.pixels, len(prepared.token_ids), prepared.tokens.shape[2], recipe.seed
    )
    optimiser = _optimiser(model.to(models.device()), recipe, models.device())
    train_rows = sum(len(prepared.subsets[name]) for name in recipe.trained_on)
    rows = np.resize(np.sort(prepared.subsets["shared"]), min(recipe.batch, train_rows))
    pairs, generator = resident(prepared, rows, models.device()), torch.Generator()
    started = monotonic()
    for i in range(4):
        started = monotonic() if i == 1 else started
        float(_step(model, optimiser, *_batch(pairs, torch.arange(len(rows)), recipe.crop, generator)))
    return (monotonic() - started) / 3 * (train_rows // len(rows)) * recipe.epochs


def look_epochs(recipe: Recipe) -> list[int]:
    """The epochs, evenly spaced and with the last, after which alignments are recorded."""
    return sorted({round(recipe.epochs * (i + 1) / recipe.looks) for i in range(recipe.looks)} - {0})


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero (OpenCLIP's schedule)."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _optimiser(model: CLIP, recipe: Recipe, where: torch.device) -> torch.optim.AdamW:
    """AdamW as OpenCLIP sets it up: gains, biases and the temperature do not decay."""
    named = list(model.named_parameters())
    free = [p for name, p in named if p.ndim < 2 or "bias" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "bias" in name)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=where.type in ("cpu", "cuda"))


def _epoch(recipe: Recipe, epoch: int, pairs: Resident, model: CLIP, optimiser: torch.optim.AdamW) -> dict[str, Any]:
    """One pass over the pairs; an incomplete last batch is left out, as in open_clip."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(pairs.rows), generator=generator)
    batch = min(recipe.batch, len(order))
    per_epoch = len(order) // batch
    total = torch.zeros((), device=pairs.images.device)
    for i in range(per_epoch):
        rate = learning_rate(recipe, epoch * per_epoch + i, recipe.epochs * per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = order[i * batch : (i + 1) * batch]
        total += _step(model, optimiser, *_batch(pairs, rows, recipe.crop, generator))
    return {
        "epoch": epoch + 1,
        "loss": float(total) / per_epoch,
        "lr": rate,
        "logit_scale": float(model.logit_scale.detach().exp()),
    }


def _batch(pairs: Resident, rows: Tensor, crop: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented images `[B, 3, H, W]` and tokens `[B, L]`."""
    on_device = rows.to(pairs.images.device)
    return models.random_crops(pairs.images[pairs.rows[on_device]], crop, generator), pairs.tokens[on_device]


def _step(model: CLIP, optimiser: torch.optim.AdamW, images: Tensor, tokens: Tensor) -> Tensor:
    """One optimiser step on the symmetric contrastive loss; the loss, still on the device."""
    mixed = torch.autocast("cuda", dtype=torch.bfloat16) if images.device.type == "cuda" else nullcontext()
    with mixed:
        image, text = models.encode_image(model, images), models.encode_text(model, tokens)
    loss = ClipLoss()(image.float(), text.float(), model.logit_scale.exp())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.detach()


def _look(model: CLIP, prepared: Prepared, looks: list[pd.DataFrame], epoch: int) -> dict[str, float]:
    """Record the alignment of every scored pair; return retrieval on the disjoint pairs."""
    model.eval()
    table = alignment(model, prepared, augmentations=0)
    looks.append(table[["pair_id", "subset", "plain", "contrast"]].assign(epoch=epoch))
    image, text = embed(model, prepared, prepared.subsets["disjoint"])
    model.train()
    return retrieval(image[0], text)


def _checkpoint(
    folder: Path, model: CLIP, optimiser: torch.optim.AdamW, history: list[dict[str, Any]], looks: list[pd.DataFrame]
) -> None:
    """Everything that a continued run needs, in one atomic file."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors.update({f"adam.{index}.{name}": t for name, t in state.items()})
    text = json.dumps({"history": history, "looks": [table.to_dict("list") for table in looks]})
    tensors["record"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    store.write_tensors(folder / "checkpoint.safetensors", tensors)


def _resume(
    folder: Path, model: CLIP, optimiser: torch.optim.AdamW
) -> tuple[int, list[dict[str, Any]], list[pd.DataFrame]]:
    """Load the checkpoint of `folder`, where there is one: epochs done, history and looks so far."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0, [], []
    tensors = store.read_tensors(path)
    record = json.loads(tensors.pop("record").numpy().tobytes())
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("adam."):
            _, index, part = name.split(".")
            state.setdefault(int(index), {})[part] = t
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return len(record["history"]), record["history"], [pd.DataFrame(table) for table in record["looks"]]
