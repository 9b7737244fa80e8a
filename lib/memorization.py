"""Memorization scores: models in, a tidy table with one row a pair out.

CLIPMem(I, T) = A(f, I, T) - A(g, I, T): f was trained on the pair, g was not (arXiv 2502.07830, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from lib import sslmem
from lib.data import Prepared
from lib.embeddings import of_images, of_texts

SUBSETS = ("shared", "candidate", "independent", "external")
MOST_READ = ("candidate", "external")  # all that is asked of a model, but for the one whose four subsets are shown


def scored_rows(prepared: Prepared) -> dict[str, np.ndarray]:
    """The rows that are scored: every candidate, independent and external pair, and as many shared ones as candidates,
    evenly spaced."""
    shared, n = prepared.subsets["shared"], len(prepared.subsets["candidate"])
    evenly = np.unique(np.linspace(0, len(shared) - 1, min(n, len(shared))).round().astype(int))
    return {name: shared[evenly] if name == "shared" else prepared.subsets[name] for name in SUBSETS}


def align(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The two forms of the alignment A of N pairs: `plain` and `contrast`, each `[N]`.

    plain    = mean over views of cos(image, text)
    contrast = plain - mean over held-out captions t of cos(image, t) - mean over held-out images i of cos(i, text)

    Cosines of unit vectors are linear, so the mean over M held-out pairs is one product with their mean vector.

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
    mean_text = (held_text.sum(dim=0) - is_held * held_text[own.clamp(min=0)]) / count
    mean_image = (held_image.sum(dim=0) - is_held * held_image[own.clamp(min=0)]) / count
    return plain, plain - (view * mean_text).sum(dim=1) - (mean_image * text).sum(dim=1)


def pair_loss(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor, scale: float) -> Tensor:
    """Contrastive loss `[N]` of each pair among M held-out pairs: a free baseline that needs one model only."""
    same = (image * text).sum(dim=1, keepdim=True) * scale
    mask = own[:, None] == torch.arange(len(held_text))[None]
    losses = []
    for a, held in ((image, held_text), (text, held_image)):
        others = (a @ held.T * scale).masked_fill(mask, -torch.inf)
        losses.append(torch.cat([same, others], dim=1).logsumexp(dim=1) - same[:, 0])
    return (losses[0] + losses[1]) / 2


def measure(
    model: CLIP, objective: str, prepared: Prepared, augmentations: int, subsets: Sequence[str] = SUBSETS
) -> pd.DataFrame:
    """What one model knows of every scored pair; `augmentations` 0, as along training, takes pictures as they are.

    Returns:
        One row a pair of `subsets` (what it holds does not depend on which others are asked for): pair_id, subset, and
        under the objective `caption`: `plain`, `contrast` (both over augmented views), `similarity` and `loss` (of the
        picture as it is); held-out pairs are the external ones;
        under `label`: `probability`, what the model gives the pair's own classes;
        under `view`: `distance_image`, L of SSLMem.
    """
    external, parts = prepared.subsets["external"], []
    if objective == "caption":
        held = of_images(model, prepared.pictures, external)[0], of_texts(model, prepared, external)
    for subset, rows in ((name, scored_rows(prepared)[name]) for name in subsets):
        found: dict[str, Tensor] = {}
        if objective == "caption":
            found = _alignment(model, prepared, rows, augmentations, held)
        if objective == "label":
            found["probability"] = _probability(model, prepared, rows, augmentations)
        if objective == "view":
            views = sslmem.VIEWS if augmentations else 2
            found["distance_image"] = sslmem.of_image_encoder(model, prepared, rows, views)
        numbers = {name: values.double().numpy() for name, values in found.items()}
        parts.append(pd.DataFrame({"pair_id": prepared.pairs.pair_ids[rows], "subset": subset, **numbers}))
    return pd.concat(parts, ignore_index=True)


def _alignment(
    model: CLIP, prepared: Prepared, rows: np.ndarray, augmentations: int, held: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    place = {row: i for i, row in enumerate(prepared.subsets["external"])}
    own = torch.tensor([place.get(row, -1) for row in rows])
    plain, text = of_images(model, prepared.pictures, rows), of_texts(model, prepared, rows)
    views = of_images(model, prepared.pictures, rows, augmentations) if augmentations else plain
    forms = dict(zip(("plain", "contrast"), align(views, text, *held, own), strict=True))
    loss = pair_loss(plain[0], text, *held, own, float(model.logit_scale.detach().exp()))
    return {**forms, "similarity": (plain[0] * text).sum(dim=1), "loss": loss}


@torch.no_grad()
def _probability(model: CLIP, prepared: Prepared, rows: np.ndarray, augmentations: int) -> Tensor:
    """Probability `[N]` of each pair's own classes together, the mean over its views."""
    views = of_images(model, prepared.pictures, rows, augmentations)
    table = F.normalize(model.classes, dim=-1).cpu()
    chances = (float(model.logit_scale.exp()) * views @ table.T).softmax(dim=-1).mean(dim=0)
    return (chances * torch.from_numpy(prepared.targets[rows] > 0)).sum(dim=1)


def clipmem(of_f: pd.DataFrame, of_g: pd.DataFrame, form: str = "contrast") -> pd.Series:
    """CLIPMem, raw: the alignment by f minus that by g, in the order of the tables.

    Raises:
        ValueError: the form is not `contrast` or `plain`, or the tables are of different pairs.
    """
    if form not in ("contrast", "plain"):
        raise ValueError(f"form: expected 'contrast' or 'plain', got {form!r}")
    if not of_f["pair_id"].equals(of_g["pair_id"]):
        raise ValueError("clipmem: the tables of f and g are of different pairs; score both on the same data and split")
    return of_f[form] - of_g[form]


def range_normalised(raw: pd.Series, candidate: pd.Series) -> pd.Series:
    """Raw scores divided by the range (max - min) over the candidates, as published scores are; no shift.

    Two extreme pairs set this scale, so it stands beside the raw score and never replaces it.

    Args:
        raw: scores `[N]`.
        candidate: `[N]`, True where the pair is a candidate.
    """
    return raw / (raw[candidate].max() - raw[candidate].min())
