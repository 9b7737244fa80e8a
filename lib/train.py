"""The training loop: resident tensors, batches augmented on the device, exact resume.

Batch order, caption and crop are functions of (seed, epoch) alone, so a run that was killed and continued gives the
bits of one that was not (on the same machine and number of threads).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import models, objectives, probes, store, units
from lib.data import Prepared
from lib.memorization import MOST_READ, measure
from lib.objectives import Resident, batch
from lib.recipes import Recipe, needed_before

CHECKPOINT_SECONDS = 10.0  # a checkpoint is written at the end of an epoch, at most this often
Note = Callable[[float, float], None]
Loss = Callable[..., Tensor]  # with the arguments of objectives.loss


def resident(prepared: Prepared, rows: np.ndarray, where: torch.device) -> Resident:
    """The rows of a data set, with captions and labels, as tensors on the device."""
    tokens, targets, source = prepared.tokens[rows], prepared.targets[rows], prepared.pairs.images
    if where.type == "cpu":
        images, places = torch.from_numpy(source), torch.from_numpy(rows)
    else:
        images, places = (
            torch.empty((len(rows), *source.shape[1:]), dtype=torch.uint8, device=where),
            torch.arange(len(rows)),
        )
        for start in range(0, len(rows), 1024):  # in parts: a large data set does not fit in the host's memory
            images[start : start + 1024] = torch.from_numpy(source[rows[start : start + 1024]])
    others = torch.from_numpy(tokens).long(), torch.from_numpy(targets), torch.from_numpy(prepared.odd[rows])
    return Resident(images, places.to(where), *(t.to(where) for t in others))


def fresh(recipe: Recipe, prepared: Prepared) -> CLIP:
    """The model of a recipe as it is before training, on the device."""
    sizes = recipe.data.pixels, len(prepared.token_ids), prepared.tokens.shape[2]
    classes = prepared.targets.shape[1] if recipe.objective == "label" else 0
    model = models.build(recipe.model, *sizes, recipe.seed, (recipe.image_width, recipe.text_width), classes)
    return model.to(models.device())


def tower_of(name: str) -> str:
    """Which tower a parameter of that name belongs to: "image", "text", or "" (the temperature)."""
    return "image" if name.startswith("visual.") else "" if name == "logit_scale" else "text"


def train(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    note: Note,
    donor: dict[str, Tensor] | None = None,
    left_out: np.ndarray | None = None,
) -> None:
    """Train one model and leave `weights.safetensors`, `history.parquet` and `looks.parquet` in `folder`.

    `history` has one row an epoch: loss, learning rate, logit scale and, where there are several looks, at each of them
    utility on the disjoint pairs and UnitMem by layer. `looks` has the scores of candidates and external pairs at the
    looks (`memorization.measure`).
    An unfinished training found in `folder` is continued. `note(epochs done, epochs)` is called after each epoch.
    `donor` are the weights that the frozen tower comes from; `left_out` the rows that are not trained on.
    """
    model = fresh(recipe, prepared).train()
    if donor:
        state = {name: t for name, t in donor.items() if tower_of(name) == recipe.frozen}
        model.load_state_dict(state, strict=False)
    optimiser = make_optimiser(model, recipe, models.device())
    pairs = resident(prepared, training_rows(recipe, prepared, left_out), models.device())
    loss_of = fastest_loss(recipe, model, pairs)
    begun, history, looks = _resume(folder, model, optimiser)
    saved = monotonic()
    for epoch in range(begun, recipe.epochs):
        history.append(_epoch(recipe, epoch, pairs, model, optimiser, loss_of))
        if epoch + 1 in look_epochs(recipe):
            history[-1].update(_look(model, recipe, prepared, looks, epoch + 1))
        if monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < recipe.epochs:
            _checkpoint(folder, model, optimiser, history, looks)
            saved = monotonic()
        note(epoch + 1, recipe.epochs)
    store.write_table(folder / "history.parquet", pd.DataFrame(history))
    store.write_table(folder / "looks.parquet", pd.concat(looks, ignore_index=True))
    store.write_tensors(folder / "weights.safetensors", model.state_dict())
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def training_rows(recipe: Recipe, prepared: Prepared, left_out: np.ndarray | None = None) -> np.ndarray:
    """The rows that a recipe trains on, those of `left_out` taken away."""
    rows = np.concatenate([prepared.subsets[name] for name in recipe.trained_on])
    return rows if left_out is None else rows[~np.isin(rows, left_out)]


def estimate_seconds(recipe: Recipe, prepared: Prepared) -> float:
    """Seconds that training the recipe will take here, from three timed steps after a warm-up; nothing is kept."""
    model = fresh(recipe, prepared)
    optimiser = make_optimiser(model, recipe, models.device())
    train_rows = len(training_rows(recipe, prepared))
    rows = np.resize(np.sort(prepared.subsets["shared"]), min(recipe.batch, train_rows))
    pairs, generator = resident(prepared, rows, models.device()), torch.Generator()
    started = monotonic()
    for i in range(4):
        started = monotonic() if i == 1 else started
        made = batch(pairs, torch.arange(len(rows)), recipe, generator)
        float(step(model, optimiser, objectives.loss(model, recipe, *made, generator)))
    return (monotonic() - started) / 3 * (train_rows // len(rows)) * recipe.epochs


def look_epochs(recipe: Recipe) -> list[int]:
    """The epochs, evenly spaced and with the last, after which scores are recorded; only the last where a recipe
    starts from other runs."""
    looks = 1 if needed_before(recipe) else recipe.looks
    return sorted({round(recipe.epochs * (i + 1) / looks) for i in range(looks)} - {0})


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero (OpenCLIP's schedule)."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def make_optimiser(model: CLIP, recipe: Recipe, where: torch.device) -> torch.optim.AdamW:
    """AdamW as OpenCLIP sets it up: gains, biases and the temperature do not decay."""
    named = list(model.named_parameters())
    free = [p for name, p in named if p.ndim < 2 or "bias" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "bias" in name)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=where.type in ("cpu", "cuda"))


def fastest_loss(recipe: Recipe, model: CLIP, pairs: Resident) -> Loss:
    """`objectives.loss`, on CUDA compiled, after a trial on a batch; where that fails, as it is, with a warning.

    With noise it stays as it is: the noise is drawn on the CPU, so that a seed gives the same one on every device.
    """
    if pairs.tokens.device.type != "cuda" or recipe.text_noise or recipe.image_noise:
        return objectives.loss
    compiled: Loss = torch.compile(objectives.loss, dynamic=False)
    places = torch.arange(min(recipe.batch, len(pairs.rows)))
    try:
        compiled(model, recipe, *batch(pairs, places, recipe, torch.Generator())).backward()
    except Exception as error:  # no compiler, no Triton, a GPU that is too old
        warnings.warn(f"training is not compiled, and so slower: {type(error).__name__}: {error}", stacklevel=3)
        return objectives.loss
    finally:
        model.zero_grad(set_to_none=True)
    return lambda model, recipe, images, partners, generator: compiled(model, recipe, images, partners)


def _epoch(
    recipe: Recipe, epoch: int, pairs: Resident, model: CLIP, optimiser: torch.optim.AdamW, loss_of: Loss
) -> dict[str, Any]:
    """One pass over the pairs; an incomplete last batch is left out, as in open_clip."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(pairs.rows), generator=generator)
    size = min(recipe.batch, len(order))
    per_epoch = len(order) // size
    total = torch.zeros((), device=pairs.images.device)
    for i in range(per_epoch):
        rate = learning_rate(recipe, epoch * per_epoch + i, recipe.epochs * per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        made = batch(pairs, order[i * size : (i + 1) * size], recipe, generator)
        total += step(model, optimiser, loss_of(model, recipe, *made, generator))
    return {
        "epoch": epoch + 1,
        "loss": float(total) / per_epoch,
        "lr": rate,
        "logit_scale": float(model.logit_scale.detach().exp()),
    }


def step(model: CLIP, optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One optimiser step; the loss, still on the device."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.detach()


def _look(model: CLIP, recipe: Recipe, prepared: Prepared, looks: list[pd.DataFrame], epoch: int) -> dict[str, float]:
    """Record the scores of candidates and external pairs; where there are several looks, return utility on the disjoint
    pairs and UnitMem by layer."""
    model.eval()
    looks.append(measure(model, recipe.objective, prepared, 0, MOST_READ).assign(epoch=epoch))
    found: dict[str, float] = {}
    if len(look_epochs(recipe)) > 1:
        found = probes.along_training(model, recipe.objective, prepared)
        found |= units.along_training(model, prepared, training_rows(recipe, prepared))
    model.train()
    return found


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
