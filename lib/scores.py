"""Memorization scores: one model in, a tidy table with one row per pair (or unit) out; f minus g is made of two.

CLIPMem(I, T) = A(f, I, T) - A(g, I, T): f was trained on the pair, g was not (arXiv 2502.07830, section 3). SSLMem is
the same of one encoder: L(g, x) - L(f, x), with L the mean distance of two augmentations of x (arXiv 2401.12233).
UnitMem asks of a single unit how much it responds to one image more than to all others (arXiv 2409.19069).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from lib.model import Change, blocks, embed_images, embed_texts, image_layers, light_crop
from lib.objectives import other_view

if TYPE_CHECKING:
    from lib.data import Prepared
    from lib.recipes import Recipe

SUBSETS = ("pool", "external")  # those scored by default; notebook 02 adds the shared pairs
SSL_VIEWS = 5
HALVES = {"candidate": 1, "independent": -1}  # of the pool, the one that f trains on and the one that g does
Held = tuple[Tensor, Tensor, Tensor]  # held-out images and captions, and the scored pairs' places among them: see align


# --- CLIPMem ---


class Alignment(NamedTuple):
    """Three forms of the alignment A of N pairs, each `[N]`; see `align`."""

    plain: Tensor
    contrast: Tensor
    consistency: Tensor


def align(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor) -> Alignment:
    """Return three forms of the alignment of N pairs.

    plain       = mean over views of cos(image, text)
    contrast    = plain - mean over held-out captions t of cos(image, t) - mean over held-out images i of cos(i, text)
    consistency = 1 + plain - half the mean over held-out (i, t) of
                  cos(image, i) + cos(image, t) + cos(i, text) + cos(t, text)   (MultiMem's, arXiv 2606.22220)

    Args:
        image: unit vectors `[A, N, D]`, A augmented views.
        text: unit vectors `[N, D]`.
        held_image, held_text: unit vectors `[M, D]` of held-out pairs.
        own: `[N]`, where a scored pair is itself held out, its place among the M (it is left out of the mean), else -1.
    """
    view = image.mean(dim=0)
    plain = (view * text).sum(dim=1)
    is_held = (own >= 0).float()[:, None]
    count = len(held_text) - is_held
    # cosines of unit vectors are linear: the mean over the held-out pairs is one product with their mean vector
    mean_text = (held_text.sum(dim=0) - is_held * held_text[own.clamp(min=0)]) / count
    mean_image = (held_image.sum(dim=0) - is_held * held_image[own.clamp(min=0)]) / count
    across = (view * mean_text).sum(dim=1) + (mean_image * text).sum(dim=1)
    within = (view * mean_image).sum(dim=1) + (mean_text * text).sum(dim=1)
    return Alignment(plain, plain - across, 1 + plain - (across + within) / 2)


def pair_loss(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor, scale: float) -> Tensor:
    """Return the contrastive loss `[N]` of each pair among M held-out pairs: a single-model baseline."""
    same = (image * text).sum(dim=1, keepdim=True) * scale
    mask = own[:, None] == torch.arange(len(held_text))[None]
    losses = []
    for a, held in ((image, held_text), (text, held_image)):
        others = (a @ held.T * scale).masked_fill(mask, -torch.inf)
        losses.append(torch.cat([same, others], dim=1).logsumexp(dim=1) - same[:, 0])
    return (losses[0] + losses[1]) / 2


def scored_rows(prepared: Prepared, subset: str) -> np.ndarray:
    """Return the rows of a subset that are scored: all, but only as many shared ones as the pool has, evenly spaced."""
    rows, n = prepared.subsets[subset], len(prepared.subsets["pool"])
    spaced = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))
    return rows[spaced] if subset == "shared" else rows


def held_out(prepared: Prepared) -> np.ndarray:
    """Return the rows that the alignment compares with: the clean external pairs, which no model trains on."""
    rows = prepared.subsets["external"]
    return rows[(prepared.table.loc[rows, "corruption"] == "clean").to_numpy()]


def measure(
    model: CLIP, recipe: Recipe, prepared: Prepared, views: int, subsets: Sequence[str] = SUBSETS
) -> pd.DataFrame:
    """Return what one model knows of every scored pair; with `views` 0, as during training, of images as they are.

    One row per pair of `subsets` (its numbers do not depend on which others are asked for): pair_id, subset, and under
    the objective `caption`: `plain`, `contrast`, `consistency` (over augmented views), `similarity`, `loss` (of the
    image as it is), each the mean over the captions that the recipe trains on; under `label`: `probability` of the
    pair's own classes; under `view`: `distance_image`, L of SSLMem.
    """
    held, parts = held_out(prepared), []
    if recipe.objective == "caption":
        others = embed_images(model, prepared.images, held)[0], embed_texts(model, prepared.tokens[held, 0])
    for subset in subsets:
        rows = scored_rows(prepared, subset)
        if recipe.objective == "caption":
            own = torch.from_numpy(np.where(np.isin(rows, held), np.searchsorted(held, rows), -1))
            found = _alignment(model, recipe, prepared, rows, views, (*others, own))
        elif recipe.objective == "label":
            found = {"probability": _probability(model, prepared, rows, views)}
        else:
            found = {"distance_image": image_distance(model, prepared, rows, views or 2)}
        parts.append(as_table(prepared, rows, found).assign(subset=subset))
    return pd.concat(parts, ignore_index=True)


def inside_outside(f: pd.DataFrame, g: pd.DataFrame, prepared: Prepared, seed: int) -> pd.DataFrame:
    """Return what the model that trained on a pair says of it, `<score>_in`, and what the other one says, `_out`.

    Args:
        f, g: tables of the two models of one seed: pair_id, subset, perhaps epoch, and scores.

    Returns:
        One row per row of f: the same keys, member (1: f trained on the pair, -1: g did, 0: both or neither; there
        `_in` is f's), and two columns for each score.

    Raises:
        ValueError: f and g did not score the same pairs in the same order.
    """
    keys = [name for name in ("pair_id", "subset", "epoch") if name in f]
    if not f[keys].equals(g[keys]):
        raise ValueError("f and g are of different pairs; score both on the same data and split")
    halves = {sign: prepared.pair_ids[prepared.half(name, seed)] for name, sign in HALVES.items()}
    member = sum(sign * f["pair_id"].isin(ids).astype(int) for sign, ids in halves.items())
    found, exchange = f[keys].assign(member=member), member == -1
    for name in f.columns.difference(keys):
        found[f"{name}_in"], found[f"{name}_out"] = f[name].mask(exchange, g[name]), g[name].mask(exchange, f[name])
    return found


def as_table(prepared: Prepared, rows: np.ndarray, columns: dict[str, Tensor]) -> pd.DataFrame:
    """Return pair_id and the given values `[R]` of some rows."""
    numbers = {name: values.double().numpy() for name, values in columns.items()}
    return pd.DataFrame({"pair_id": prepared.pair_ids[rows], **numbers})


def _alignment(
    model: CLIP, recipe: Recipe, prepared: Prepared, rows: np.ndarray, views: int, held: Held
) -> dict[str, Tensor]:
    image, scale = embed_images(model, prepared.images, rows), float(model.logit_scale.detach().exp())
    seen = embed_images(model, prepared.images, rows, views) if views else image
    of_captions = []
    for caption in range(min(recipe.n_captions, prepared.tokens.shape[1])):
        text = embed_texts(model, prepared.tokens[rows, caption])
        found = align(seen, text, *held)._asdict()
        found |= {"similarity": (image[0] * text).sum(dim=1), "loss": pair_loss(image[0], text, *held, scale)}
        of_captions.append(found)
    return {name: torch.stack([found[name] for found in of_captions]).mean(dim=0) for name in of_captions[0]}


@torch.no_grad()
def _probability(model: CLIP, prepared: Prepared, rows: np.ndarray, views: int) -> Tensor:
    """Return the probability `[R]` of each pair's own classes together, the mean over its views."""
    image = embed_images(model, prepared.images, rows, views)
    table = F.normalize(model.classes, dim=-1).cpu()
    chances = (float(model.logit_scale.exp()) * image @ table.T).softmax(dim=-1).mean(dim=0)
    return (chances * torch.from_numpy(prepared.targets[rows] > 0)).sum(dim=1)


# --- SSLMem ---


def distance(views: Tensor) -> Tensor:
    """Return the mean L2 distance between two of A representations, `[A, N, D]` to `[N]`; NaN where A is 1."""
    found = [(a - b).norm(dim=1) for a, b in combinations(views, 2)]
    return torch.stack(found).mean(dim=0) if found else torch.full((views.shape[1],), torch.nan)


def image_distance(
    model: CLIP, prepared: Prepared, rows: np.ndarray, views: int = SSL_VIEWS, change: Change = other_view
) -> Tensor:
    """Return L `[R]` of the image encoder, by default under the augmentation of the self-supervised model."""
    return distance(embed_images(model, prepared.images, rows, views, change))


# --- units and layers ---


def selectivity(largest: Tensor, total: Tensor, count: int) -> Tensor:
    """Return (m - r) / (m + r) of each unit `[U]`: m its largest mean activation, r the mean of all the others.

    Over images it is UnitMem, over classes ClassMem. In [0, 1], as activations are taken after GELU and clamped at 0;
    0 for dead units. `largest` and `total` `[U]` are the largest value and the sum over `count` images or classes.
    """
    others = (total - largest) / (count - 1)
    return (largest - others) / (largest + others).clamp(min=1e-12)  # 0 / 1e-12 for dead units


@torch.no_grad()
def unit_scores(model: CLIP, prepared: Prepared, rows: np.ndarray, views: int) -> pd.DataFrame:
    """Return one row per unit: layer (from 1), unit, unitmem, classmem (NaN with fewer than two classes); over the
    images of `rows`, the training images.

    Activations are means over patches and light crops. Of each block of images only the largest and the sums are kept,
    so that memory does not grow with the number of images.
    """
    targets = torch.from_numpy(prepared.targets[rows])
    targets = targets[:, targets.any(dim=0)]
    weights = torch.cat([torch.ones(len(rows), 1), targets], dim=1).double()  # of all images, of those of each class
    largest, sums = ([torch.zeros(1)] * len(model.visual.transformer.resblocks) for _ in range(2))  # of each layer
    for start, images in blocks(model, prepared.images, rows):
        drawn = (light_crop(images, torch.Generator().manual_seed(view)) for view in range(views))
        of_views = [[hidden.cpu() for hidden in image_layers(model, x)] for x in drawn]
        for layer, hidden in enumerate(zip(*of_views, strict=True)):
            mean = torch.stack(hidden).mean(dim=0)
            largest[layer] = torch.maximum(largest[layer], mean.amax(dim=0))
            sums[layer] = sums[layer] + weights[start : start + len(images)].T @ mean.double()
    parts = []
    for layer, (most, total) in enumerate(zip(largest, sums, strict=True), start=1):
        by_class = total[1:] / targets.sum(dim=0)[:, None]
        top = by_class.amax(dim=0) if len(by_class) > 1 else torch.full_like(most, torch.nan)
        unitmem, classmem = selectivity(most, total[0], len(rows)), selectivity(top, by_class.sum(dim=0), len(by_class))
        found = {"unit": range(len(most)), "unitmem": unitmem.numpy(), "classmem": classmem.numpy()}
        parts.append(pd.DataFrame({"layer": layer, **found}))
    return pd.concat(parts, ignore_index=True)
