"""The training loop: pairs resident on the device, batches augmented there, exact resume.

Batch order, captions and crops follow from (seed, epoch), a checkpoint holds the rest: a training that was stopped and
continued gives the bits of one that was not, on one machine with as many threads (not on CUDA: its sums are unordered).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import model as models
from lib import store
from lib.objectives import Resident, batch, loss
from lib.recipes import Recipe, model_config

if TYPE_CHECKING:
    from lib.data import Prepared

HALVES = ("candidate", "independent")  # of the pool: f trains on the first one, g on the second one
DIVERGED = 3.0  # times the loss of a guess within the batch: a loss above it will not come down again
CHECKPOINT_SECONDS = 10.0  # a checkpoint is written at the end of an epoch, at most this often
# model -> scores of single pairs, and numbers for that epoch's row of the history
Evaluate = Callable[[CLIP], tuple[pd.DataFrame, dict[str, float]]]


def resident(prepared: Prepared, rows: np.ndarray, where: torch.device) -> Resident:
    """Return some rows of a data set as tensors on the device."""
    images, places = torch.from_numpy(prepared.images), torch.from_numpy(rows)
    if where.type != "cpu":
        images = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, device=where)
        places = torch.arange(len(rows))
        for start in range(0, len(rows), 1024):  # in parts: a large data set does not fit in the host's memory
            images[start : start + 1024] = torch.from_numpy(prepared.images[rows[start : start + 1024]])
    tokens, targets = torch.from_numpy(prepared.tokens[rows]).long(), torch.from_numpy(prepared.targets[rows])
    return Resident(images=images, rows=places.to(where), tokens=tokens.to(where), targets=targets.to(where))


def fresh(recipe: Recipe, prepared: Prepared) -> CLIP:
    """Return the model of a recipe as it is before training, on the device."""
    return models.build(
        config=model_config(recipe.model),
        pixels=recipe.data.pixels,
        vocabulary=len(prepared.token_ids),
        context=prepared.tokens.shape[2],
        seed=recipe.seed,
        classes=prepared.targets.shape[1] if recipe.objective == "label" else 0,
    ).to(models.device())


def tower_of(name: str) -> str:
    """Return which tower a parameter of that name belongs to: "image", "text", or "" (the temperature)."""
    return "image" if name.startswith("visual.") else "" if name == "logit_scale" else "text"


def training_rows(recipe: Recipe, prepared: Prepared, left_out: np.ndarray | None = None) -> np.ndarray:
    """Return the rows that a recipe trains on, without those of `left_out`."""
    parts = [prepared.half(n, recipe.seed) if n in HALVES else prepared.subsets[n] for n in recipe.trained_on]
    rows = np.concatenate(parts)
    return rows if left_out is None else rows[~np.isin(rows, left_out)]


def evaluation_epochs(recipe: Recipe) -> list[int]:
    """Return after which epochs a model is evaluated: evenly spaced; only the last where pairs are removed."""
    count = 1 if recipe.remove else recipe.evaluations
    return sorted({round(recipe.epochs * (i + 1) / count) for i in range(count)} - {0})


def train(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    evaluate: Evaluate,
    on_progress: Callable[[float], None] = lambda share: None,
    donor: dict[str, Tensor] | None = None,
    left_out: np.ndarray | None = None,
) -> None:
    """Train one model and leave `weights.safetensors`, `history.parquet` and `evaluations.parquet` in `folder`.

    `history` has one row per epoch: loss, learning rate, logit scale and what `evaluate` adds; `evaluations` has the
    scores of single pairs that it returns, with their epoch. An unfinished training found in `folder` is continued.
    `on_progress` gets the share that is done. `donor` has the weights of the frozen tower. `left_out` rows are unseen.
    Raise FloatingPointError where the loss diverges; the last checkpoint is from before.
    """
    model = fresh(recipe, prepared).train()
    if donor:
        model.load_state_dict({n: t for n, t in donor.items() if tower_of(n) == recipe.frozen}, strict=False)
    optimiser = make_optimiser(model, recipe)
    pairs = resident(prepared, training_rows(recipe, prepared, left_out), models.device())
    history, evaluations = _resume(folder, model, optimiser)
    saved = monotonic()
    for epoch in range(len(history), recipe.epochs):
        history.append(run_epoch(recipe, epoch, pairs, model, optimiser))
        if epoch + 1 in evaluation_epochs(recipe):
            scores, numbers = evaluate(model.eval())
            model.train()
            evaluations.append(scores.assign(epoch=epoch + 1))
            history[-1].update(numbers)
        if monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < recipe.epochs:
            _checkpoint(folder, model, optimiser, history, evaluations)
            saved = monotonic()
        on_progress((epoch + 1) / recipe.epochs)
    store.write_table(folder / "history.parquet", pd.DataFrame(history))
    store.write_table(folder / "evaluations.parquet", pd.concat(evaluations, ignore_index=True))
    store.write_tensors(folder / "weights.safetensors", model.state_dict())
    (folder / "checkpoint").unlink(missing_ok=True)


def run_epoch(recipe: Recipe, epoch: int, pairs: Resident, model: CLIP, optimiser: Any) -> dict[str, Any]:
    """Pass once over the pairs, without an incomplete last batch (as open_clip); return the row of the history."""
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
        total += step(model, optimiser, loss(model, recipe, *made, generator))
    mean, scale = float(total) / per_epoch, float(model.logit_scale.detach().exp())
    if not mean <= DIVERGED * math.log(max(2, size)):  # nor is NaN
        raise FloatingPointError(
            f"training diverged: the loss of epoch {epoch + 1} is {mean:.3g}, and a guess has {math.log(size):.2g} "
            f"({recipe.objective}, seed {recipe.seed}, learning rate {recipe.lr:g}). Lower `lr` of its recipe in "
            f"lib/recipes.py. Other models are kept."
        )
    return {"epoch": epoch + 1, "loss": mean, "lr": rate, "logit_scale": scale}


def step(model: CLIP, optimiser: torch.optim.Optimizer, value: Tensor) -> Tensor:
    """Take one optimiser step down the loss `value`; return it, still on the device."""
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))  # as OpenCLIP and CLIP do
    return value.detach()


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero (OpenCLIP's schedule)."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def make_optimiser(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW as OpenCLIP sets it up: gains, biases and the temperature do not decay."""
    free = [p for name, p in model.named_parameters() if p.ndim < 2 or "bias" in name]
    decayed = [p for name, p in model.named_parameters() if not (p.ndim < 2 or "bias" in name)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=models.device().type != "mps")


def _checkpoint(folder: Path, model: CLIP, optimiser: Any, history: list[Any], evaluations: list[pd.DataFrame]) -> None:
    """Write everything that a continued run needs, in one file."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": t for name, t in state.items()}
    text = json.dumps({"history": history, "evaluations": [table.to_dict("list") for table in evaluations]})
    tensors["record"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    store.write_checkpoint(folder / "checkpoint", tensors, folder.name)


def _resume(folder: Path, model: CLIP, optimiser: Any) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """Load the checkpoint of `folder`, where there is a sound one: return history and evaluations so far."""
    tensors = store.read_checkpoint(folder / "checkpoint", folder.name)
    if tensors is None:
        return [], []
    record = json.loads(tensors.pop("record").numpy().tobytes())
    model.load_state_dict({name: tensors.pop(f"model.{name}") for name in model.state_dict()})
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        _, index, part = name.split(".")
        state.setdefault(int(index), {})[part] = t
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return record["history"], [pd.DataFrame(table) for table in record["evaluations"]]
