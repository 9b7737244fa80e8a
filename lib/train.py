"""The training loop: pairs resident on the device, batches augmented there, exact resume.

Batch order, captions and crops follow from (seed, epoch), a checkpoint holds the rest: a training that was stopped and
continued gives the bits of one that was not, on one machine with as many threads (not on CUDA: its sums are unordered).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
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
        config=model_config(recipe.model, recipe.width, recipe.depth),
        pixels=recipe.data.pixels,
        vocabulary=len(prepared.token_ids),
        context=prepared.tokens.shape[2],
        seed=recipe.seed,
        classes=prepared.targets.shape[1] if recipe.objective == "label" else 0,
        sigmoid=recipe.objective == "sigmoid",
    ).to(models.device())


def tower_of(name: str) -> str:
    """Return which tower a parameter of that name belongs to: "image", "text", or "" (temperature and bias)."""
    return "image" if name.startswith("visual.") else "" if name.startswith("logit_") else "text"


def training_rows(recipe: Recipe, prepared: Prepared, left_out: np.ndarray | None = None) -> np.ndarray:
    """Return the rows that a recipe trains on, without those of `left_out`."""
    parts = [prepared.half(n, recipe.seed) if n in HALVES else prepared.subsets[n] for n in recipe.trained_on]
    rows = np.concatenate(parts)
    return rows if left_out is None else rows[~np.isin(rows, left_out)]


def schedule(recipe: Recipe) -> Recipe:
    """Return a recipe with the epochs and the learning rate of its own training: fine-tuning starts where another run
    ended, and has a tenth of its rate."""
    return replace(recipe, epochs=recipe.finetuned, lr=recipe.lr / 10) if recipe.finetuned else recipe


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
    suspicious: np.ndarray | None = None,
) -> None:
    """Train one model and leave `weights.safetensors`, `history.parquet` and `evaluations.parquet` in `folder`.

    `history` has one row per epoch: loss, learning rate, logit scale and what `evaluate` adds; `evaluations` has the
    scores of single pairs that it returns, with their epoch. An unfinished training found in `folder` is continued.
    `on_progress` gets the share that is done. `donor`: weights of the frozen tower, or of the model to fine-tune.
    `suspicious` rows are removed or regrouped, as the recipe says. Raise FloatingPointError where the loss diverges;
    the last checkpoint is from before.
    """
    recipe, model = schedule(recipe), fresh(recipe, prepared).train()
    if donor:
        known = {n: t for n, t in donor.items() if recipe.finetuned or tower_of(n) == recipe.frozen}
        model.load_state_dict(known, strict=False)
    optimiser = make_optimiser(model, recipe)
    rows = training_rows(recipe, prepared, suspicious if recipe.remove else None)
    pairs = resident(prepared, rows, models.device())
    if recipe.regrouped and suspicious is not None:
        pairs = replace(pairs, regrouped=torch.from_numpy(np.isin(rows, suspicious)))
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
    size, plain = min(recipe.batch, len(pairs.rows)), replace(recipe, n_captions=1, text_noise=0.0)
    batches = list(_batches(pairs, size, generator))
    per_epoch = len(batches)
    total = torch.zeros((), device=pairs.images.device)
    for i, (places, mitigated) in enumerate(batches):
        rate = learning_rate(recipe, epoch * per_epoch + i, recipe.epochs * per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        how = recipe if mitigated else plain
        total += step(model, optimiser, loss(model, how, *batch(pairs, places, how, generator), generator))
    mean, scale = float(total) / per_epoch, float(model.logit_scale.detach().exp())
    if not mean <= DIVERGED * math.log(max(2, size)):  # nor is NaN
        raise FloatingPointError(
            f"training diverged: the loss of epoch {epoch + 1} is {mean:.3g}, and a guess has {math.log(size):.2g} "
            f"({recipe.objective}, seed {recipe.seed}, learning rate {recipe.lr:g}). Lower `lr` of its recipe in "
            f"lib/recipes.py. Other models are kept."
        )
    return {"epoch": epoch + 1, "loss": mean, "lr": rate, "logit_scale": scale}


def _batches(pairs: Resident, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
    """Yield the places of each batch in random order, and whether the recipe's captions and noise hold for it: for all,
    or where some pairs are regrouped, for the batches that hold these alone."""
    order = torch.randperm(len(pairs.rows), generator=generator)
    if pairs.regrouped is None:
        yield from ((part, True) for part in order.split(size) if len(part) == size)
        return
    special = pairs.regrouped[order]
    small = min(size, int(special.sum()))
    found = [(part, False) for part in order[~special].split(size) if len(part) == size]
    found += [(part, True) for part in order[special].split(small) if len(part) == small]
    yield from (found[i] for i in torch.randperm(len(found), generator=generator))


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
