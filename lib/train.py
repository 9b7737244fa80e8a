"""The training loop, one for all objectives: only the partner of an image changes.

Batch order, captions and crops follow from (seed, epoch), a checkpoint holds the rest: a training that was stopped and
continued gives the bits of one that was not, on one machine with as many threads (not on CUDA: its sums are unordered).
"""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP
from torch import Tensor

from lib import model as models
from lib import store
from lib.data import Dataset
from lib.recipes import Recipe, model_config

DIVERGED = 3.0  # times the loss of a guess within the batch: a loss above it will not come down again
Evaluate = Callable[[CLIP], tuple[pd.DataFrame, dict[str, float]]]
CHECKPOINT_SECONDS = 10.0  # a checkpoint is written at the end of an epoch, at most this often


@dataclass(frozen=True)
class DeviceData:
    """What training reads of P pairs, on the device."""

    images: Tensor  # uint8 [N, 3, H, W]; on the CPU the data set itself, which is memory-mapped
    rows: Tensor  # [P], the positions of the pairs in `images`
    tokens: Tensor  # [P, C, L]
    targets: Tensor  # [P, K], the share of each class in a pair's label


def to_device(data: Dataset, rows: np.ndarray, where: torch.device) -> DeviceData:
    """Return some rows of a data set as tensors on the device."""
    images, positions = torch.from_numpy(data.images), torch.from_numpy(rows)
    if where.type != "cpu":
        images, positions = torch.from_numpy(data.images[rows]).to(where), torch.arange(len(rows))
    tokens, targets = torch.from_numpy(data.tokens[rows]).long(), torch.from_numpy(data.targets[rows])
    return DeviceData(images=images, rows=positions.to(where), tokens=tokens.to(where), targets=targets.to(where))


def batch(pairs: DeviceData, positions: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return augmented images `[B, 3, H, W]` and their partners: tokens `[B, L]`, class shares `[B, K]` or views."""
    positions = positions.to(pairs.images.device)
    images = pairs.images[pairs.rows[positions]]
    first = models.augment(images, recipe.crop, recipe.color_jitter, generator)
    if recipe.objective == "supervised":
        return first, pairs.targets[positions]
    if recipe.objective == "self-supervised":
        return first, models.other_view(images, generator)
    which = torch.zeros(len(positions), dtype=torch.long)
    if recipe.n_captions > 1:
        which = torch.randint(min(recipe.n_captions, pairs.tokens.shape[1]), (len(positions),), generator=generator)
    tokens = pairs.tokens[positions, which.to(positions.device)]
    return first, drop_tokens(tokens, recipe.token_dropout, generator) if recipe.token_dropout else tokens


def drop_tokens(tokens: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Leave out every token of `[B, L]` with probability `share`, never start and end, and move up the rest."""
    chance = torch.rand(tokens.shape, generator=generator).to(tokens.device)
    end = tokens == tokens.amax(dim=1, keepdim=True)
    left_out = (chance < share) & (tokens > 0) & ~end
    left_out[:, 0] = False
    order = (left_out | (tokens == 0)).int().argsort(dim=1, stable=True)
    return tokens.masked_fill(left_out, 0).gather(1, order)


def loss(model: CLIP, recipe: Recipe, images: Tensor, partners: Tensor, generator: Any = None) -> Tensor:
    """Return the loss of one batch: symmetric contrastive for captions and views, cross-entropy over class labels, and
    for SigLIP a yes or no for every image and caption (arXiv 2303.15343). `generator` draws the noise of a recipe."""
    image = _embedding(model, "image", images, recipe, generator)
    scale = model.logit_scale.exp()
    if recipe.objective == "supervised":
        return F.cross_entropy(scale * image @ F.normalize(model.classes, dim=-1).T, partners)
    partner = _embedding(model, "text" if recipe.reads_captions else "image", partners, recipe, generator)
    if recipe.objective == "SigLIP":
        return SigLipLoss()(image, partner, scale, model.logit_bias)
    return ClipLoss()(image, partner, scale)


def _embedding(model: CLIP, tower: str, x: Tensor, recipe: Recipe, generator: torch.Generator | None) -> Tensor:
    """Return embeddings `[B, D]` of one tower, float32, with the recipe's noise; no gradient where it is frozen."""
    encode = models.encode_text if tower == "text" else models.encode_image
    noise = recipe.text_noise if tower == "text" else recipe.image_noise
    # Threads share autocast's cache of weights. One that leaves autocast would empty another's, and change its bits.
    half = models.precision() == "bf16"
    mixed = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False)
    with mixed, torch.set_grad_enabled(torch.is_grad_enabled() and recipe.frozen != tower):
        e = encode(model, x).float()
    return noisy(e, noise, generator) if noise else e


def noisy(embedding: Tensor, length: float, generator: torch.Generator | None) -> Tensor:
    """Add Gaussian noise of the given expected length to unit vectors `[B, D]`, and return them at unit length again.
    (The paper gives a deviation per coordinate, and not whether it is added before or after normalising.)"""
    noise = torch.randn(embedding.shape, generator=generator).to(embedding.device)
    return F.normalize(embedding + length / embedding.shape[-1] ** 0.5 * noise, dim=-1)


def fresh(recipe: Recipe, data: Dataset) -> CLIP:
    """Return the model of a recipe as it is before training, on the device."""
    classes = data.targets.shape[1] if recipe.objective == "supervised" else 0
    sizes = (recipe.data.pixels, len(data.token_ids), data.tokens.shape[2], recipe.seed, classes)
    config = model_config(recipe.model, recipe.width)
    return models.build(config, *sizes, sigmoid=recipe.objective == "SigLIP").to(models.device())


def evaluation_epochs(recipe: Recipe) -> list[int]:
    """Return after which epochs a model is evaluated: evenly spaced; only the last where pairs are removed."""
    count = 1 if recipe.remove else recipe.evaluations
    return sorted({round(recipe.epochs * (i + 1) / count) for i in range(count)} - {0})


def train(
    recipe: Recipe, data: Dataset, folder: Path, evaluate: Evaluate, on_epoch: Callable = lambda: None,
    donor: dict[str, Tensor] | None = None, removed: Sequence[int] = (),
) -> None:  # fmt: skip
    """Train one model and leave `weights.safetensors`, `history.parquet` and `evaluations.parquet` in `folder`.
    `history` has one row per epoch: loss, learning rate, logit scale and the numbers of `evaluate`; `evaluations` has
    the scores of single pairs that it returns, with their epoch. An unfinished training in `folder` is continued.
    `donor`: weights of the frozen tower. Rows in `removed` are not trained on. Raise FloatingPointError where the loss
    diverges; the last checkpoint is from before."""
    model = fresh(recipe, data).train()
    if donor:  # temperature and bias are trained, too
        tower = {n: t for n, t in donor.items() if n.startswith("visual.") == (recipe.frozen == "image")}
        model.load_state_dict({n: t for n, t in tower.items() if not n.startswith("logit_")}, strict=False)
    optimiser = make_optimiser(model, recipe)
    pairs = to_device(data, data.training_rows(recipe, removed), models.device())
    history, evaluations = _resume(folder / "checkpoint", model, optimiser)
    saved, pause = monotonic(), CHECKPOINT_SECONDS
    for epoch in range(len(history), recipe.epochs):
        history.append(run_epoch(recipe, epoch, pairs, model, optimiser))
        if epoch + 1 in evaluation_epochs(recipe):
            scores, numbers = evaluate(model.eval())
            model.train()
            evaluations.append(scores.assign(epoch=epoch + 1))
            history[-1].update(numbers)
        if (began := monotonic()) - saved > pause and epoch + 1 < recipe.epochs:
            _checkpoint(folder / "checkpoint", model, optimiser, history, evaluations)
            saved = monotonic()
            pause = CHECKPOINT_SECONDS * max(1, 2 * (saved - began))  # writing takes a twentieth of the time at most
        on_epoch()
    store.write_table(folder / "history.parquet", pd.DataFrame(history))
    store.write_table(folder / "evaluations.parquet", pd.concat([pd.DataFrame(), *evaluations], ignore_index=True))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    store.write_bytes(folder / "weights.safetensors", safetensors.torch.save(weights))
    (folder / "checkpoint").unlink(missing_ok=True)


def _checkpoint(path: Path, model: CLIP, optimiser: Any, history: list[Any], evaluations: list[pd.DataFrame]) -> None:
    """Write everything that a continued training needs, behind its digest."""
    done = [table.to_dict("list") for table in evaluations]
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "history": history, "scores": done}
    torch.save(state, buffer := io.BytesIO())
    store.write_bytes(path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())


def _resume(path: Path, model: CLIP, optimiser: Any) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """Load a checkpoint, where there is a sound one; return history and evaluations so far."""
    whole = path.read_bytes() if path.is_file() else b""
    if whole[:32] != hashlib.sha256(whole[32:]).digest():
        if whole:
            warnings.warn(f"{path} is damaged; training starts from the beginning", stacklevel=2)
        return [], []
    state = torch.load(io.BytesIO(whole[32:]), weights_only=True, map_location=models.device())
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["history"], [pd.DataFrame(table) for table in state["scores"]]


def run_epoch(recipe: Recipe, epoch: int, pairs: DeviceData, model: CLIP, optimiser: Any) -> dict[str, Any]:
    """Pass once over the pairs, without an incomplete last batch (as open_clip); return the row of the history."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    size = min(recipe.batch, len(pairs.rows))
    order = torch.randperm(len(pairs.rows), generator=generator)
    batches = [part for part in order.split(size) if len(part) == size]
    total = torch.zeros((), device=pairs.images.device)
    for i, part in enumerate(batches):
        rate = learning_rate(recipe, epoch * len(batches) + i, recipe.epochs * len(batches))
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss(model, recipe, *batch(pairs, part, recipe, generator), generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as OpenCLIP and CLIP do
        total += value.detach()
    mean, scale = float(total) / len(batches), float(model.logit_scale.detach().exp())
    if not mean <= DIVERGED * math.log(max(2, size)):  # nor is NaN
        said = f"training diverged: the loss of epoch {epoch + 1} is {mean:.3g}, that of a guess {math.log(size):.2g}"
        raise FloatingPointError(f"{said} ({recipe.objective}, seed {recipe.seed}). Lower `lr`: it is {recipe.lr:g}.")
    return {"epoch": epoch + 1, "loss": mean, "lr": rate, "logit_scale": scale}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero (OpenCLIP's schedule)."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def make_optimiser(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW as OpenCLIP sets it up: gains, biases and the temperature do not decay."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (0.0, recipe.weight_decay)]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim >= 2 and "bias" not in name]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
