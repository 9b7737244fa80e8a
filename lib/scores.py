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

from lib.model import blocks, embed_images, embed_texts, image_layers, light_crop
from lib.objectives import other_view
from lib.recipes import CORRUPTED, Recipe

if TYPE_CHECKING:
    from lib.data import Prepared

# LEMoN's values for data without known errors, as its authors fix them in https://github.com/MLforHealth/LEMoN,
# notebooks/hparam_drop.ipynb. There d(x, x') of the first exponential is -cos, not 1 - cos: a WEIGHT of 5.5 here.
NEIGHBOURS = 30  # k
WEIGHT = 5.0  # beta and gamma
TAU_OWN = 0.1  # tau_1: how fast a neighbour counts less, the farther it is
TAU_PAIR = 5.0  # tau_2: the same, the worse its own image and caption agree


# --- CLIPMem, SSLMem ---


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

    Unit vectors: `image` `[A, N, D]` of A augmented views, `text` `[N, D]`, `held_image` and `held_text` `[M, D]` of
    held-out pairs. `own` `[N]`: of a scored pair that is itself held out its place among the M, which is left out of
    the mean; else -1.
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
    model: CLIP, recipe: Recipe, prepared: Prepared, views: int, subsets: Sequence[str] = CORRUPTED
) -> pd.DataFrame:
    """Return what one model knows of every scored pair; with `views` 0, as during training, of images as they are.

    One row per pair of `subsets` (its numbers do not depend on which others are asked for): pair_id, subset, and under
    an objective with captions: `plain`, `contrast`, `consistency` (over augmented views), `similarity`, `loss` (of the
    image as it is), each the mean over the captions that the recipe trains on; under `label`: `probability` of the
    pair's own classes; under `view`: `distance_image`, L of SSLMem.
    """
    held, parts = held_out(prepared), []
    if recipe.reads_captions:
        held_image, held_text = embed_pairs(model, prepared, held)
    for subset in subsets:
        rows = scored_rows(prepared, subset)
        if recipe.reads_captions:
            found = _alignment(model, recipe, prepared, rows, views, (held_image, held_text, places(rows, held)))
        elif recipe.objective == "label":
            found = {"probability": _probability(model, prepared, rows, views)}
        else:
            found = {"distance_image": distance(embed_images(model, prepared.images, rows, views or 2, other_view))}
        parts.append(as_table(prepared, rows, found).assign(subset=subset))
    return pd.concat(parts, ignore_index=True)


def embed_pairs(model: CLIP, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Return unit vectors `[2, R, D]` of some rows: the images as they are, and their captions 0."""
    return torch.cat([embed_images(model, prepared.images, rows), embed_texts(model, prepared.tokens[rows, 0])[None]])


def places(rows: np.ndarray, among: np.ndarray) -> Tensor:
    """Return where each of `rows` stands in `among`, int64 `[R]`, -1: it is not there."""
    return torch.from_numpy(pd.Index(among).get_indexer(rows))


def as_table(prepared: Prepared, rows: np.ndarray, columns: dict[str, Tensor]) -> pd.DataFrame:
    """Return pair_id and the given values `[R]` of some rows."""
    numbers = {name: values.double().numpy() for name, values in columns.items()}
    return pd.DataFrame({"pair_id": prepared.pair_ids[rows], **numbers})


def _alignment(
    model: CLIP, recipe: Recipe, prepared: Prepared, rows: np.ndarray, views: int, held: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Tensor]:
    """Return the columns of `measure` for captions; `held`: the last three arguments of `align`."""
    image, scale = embed_images(model, prepared.images, rows), float(model.logit_scale.detach().exp())
    seen = embed_images(model, prepared.images, rows, views) if views else image
    of_captions = []
    trained_on = 1 if recipe.regrouped else recipe.n_captions  # all pairs but the few regrouped have one caption
    for caption in range(min(trained_on, prepared.tokens.shape[1])):
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


def distance(views: Tensor) -> Tensor:
    """Return the mean L2 distance between two of A >= 2 representations, `[A, N, D]` to `[N]`."""
    return torch.stack([(a - b).norm(dim=1) for a, b in combinations(views, 2)]).mean(dim=0)


# --- baselines: a single model finds wrong captions ---


def single_model(model: CLIP, prepared: Prepared, rows: np.ndarray, known: np.ndarray, views: int) -> pd.DataFrame:
    """Return two scores that are high for wrong captions, of the pairs `rows` with their caption 0.

    Columns: pair_id, `augmentation` = mean over `views` light crops of |cos(crop, text) - cos(image, text)|, after the
    augmentation-enhanced attack of Ko et al., ICCV 2023 (https://arxiv.org/abs/2310.00108), and `lemon`, whose
    neighbours are of the rows `known`, those that the model was trained on: more than NEIGHBOURS.
    """
    (image, text), (known_image, known_text) = (embed_pairs(model, prepared, some) for some in (rows, known))
    crops = embed_images(model, prepared.images, rows, views)
    changes = (crops * text).sum(dim=2) - (image * text).sum(dim=1)
    score = lemon(image, text, known_image, known_text, places(rows, known), NEIGHBOURS)
    return as_table(prepared, rows, {"augmentation": changes.abs().mean(dim=0), "lemon": score})


def lemon(image: Tensor, text: Tensor, known_image: Tensor, known_text: Tensor, own: Tensor, k: int) -> Tensor:
    """Return LEMoN's score `[N]` (Zhang et al., ICML 2025, https://arxiv.org/abs/2407.18941):
    d(x, y) + WEIGHT * (s_n + s_m), with d(x, y) = 1 - cos(x, y).

    s_n = mean over the k known pairs (x', y') with x' nearest to x of
          d(y, y') * exp(-TAU_OWN * d(x, x')) * exp(-TAU_PAIR * d(x', y'))
    s_m = the same with images and captions exchanged: y' nearest to y, d(x, x') and d(y, y')

    Unit vectors: `image` and `text` `[N, D]`, the x and y, `known_image` and `known_text` `[M, D]`. `own` `[N]`: of a
    scored pair that is itself known its place among the M (no neighbour of itself), else -1. `k`: number of neighbours;
    which of equally near ones count is left open.
    """
    agreement = torch.exp(-TAU_PAIR * (1 - (known_image * known_text).sum(dim=1)))
    by_image, by_text = 1 - image @ known_image.T, 1 - text @ known_text.T
    itself = own[:, None] == torch.arange(len(known_text))
    score = 1 - (image * text).sum(dim=1)
    for apart, other in ((by_image, by_text), (by_text, by_image)):
        near, place = apart.masked_fill(itself, torch.inf).topk(k, largest=False)
        score += WEIGHT * (other.gather(1, place) * torch.exp(-TAU_OWN * near) * agreement[place]).mean(dim=1)
    return score


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
