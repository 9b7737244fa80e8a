"""Which units and which layers of the image tower memorize: UnitMem, ClassMem, and distances by layer.

UnitMem of a unit is (m - r) / (m + r): m its largest mean activation over the training images, r the mean of all others
(Wang et al., NeurIPS 2024, arXiv 2409.19069). In [0, 1], because the activations are taken after GELU and clamped at 0.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import models, objectives, sslmem
from lib.data import Prepared
from lib.embeddings import chunks, light_crop


def selectivity(means: Tensor) -> Tensor:
    """(largest - mean of the others) / (largest + mean of the others) by unit, `[N, U]` to `[U]`; 0 for dead units.

    Of mean activations by image it is UnitMem, of mean activations by class ClassMem.
    """
    largest = means.amax(dim=0)
    others = (means.sum(dim=0) - largest) / (len(means) - 1)
    total = largest + others
    return torch.where(total > 0, (largest - others) / total.clamp(min=1e-12), 0.0)


def by_class(means: Tensor, targets: Tensor) -> Tensor:
    """Mean activations of every class `[K, U]` from those of every image `[N, U]` and its class shares `[N, K]`."""
    share = targets.to(means)[:, targets.any(dim=0)]
    return share.T @ means / share.sum(dim=0)[:, None]


@torch.no_grad()
def activations(model: CLIP, prepared: Prepared, rows: np.ndarray, augmentations: int) -> list[Tensor]:
    """Mean activation of every hidden unit of every layer over patches and light crops: per layer `[N, U]`."""
    parts = [_over_views(model, images, augmentations) for _, images in chunks(model, prepared.pictures, rows)]
    return [torch.cat(layer).cpu() for layer in zip(*parts, strict=True)]


def _over_views(model: CLIP, images: Tensor, augmentations: int) -> list[Tensor]:
    made = (light_crop(images, torch.Generator().manual_seed(a)) for a in range(augmentations))
    views = [[hidden for hidden, _ in models.image_layers(model, x)] for x in made]
    return [torch.stack(layer).mean(dim=0) for layer in zip(*views, strict=True)]


def table(model: CLIP, prepared: Prepared, rows: np.ndarray, augmentations: int) -> pd.DataFrame:
    """One row a unit: layer (from 1), unit, unitmem, classmem; over the images of `rows`, the training images."""
    targets, parts = torch.from_numpy(prepared.targets[rows]), []
    for layer, means in enumerate(activations(model, prepared, rows, augmentations), start=1):
        scores = {"unitmem": selectivity(means).numpy(), "classmem": selectivity(by_class(means, targets)).numpy()}
        parts.append(pd.DataFrame({"layer": layer, "unit": range(means.shape[1]), **scores}))
    return pd.concat(parts, ignore_index=True)


def along_training(model: CLIP, prepared: Prepared, rows: np.ndarray) -> dict[str, float]:
    """Mean UnitMem by layer, `unitmem_1`, ..., from two views of each training image."""
    found = activations(model, prepared, rows, 2)
    return {f"unitmem_{layer}": float(selectivity(means).mean()) for layer, means in enumerate(found, start=1)}


@torch.no_grad()
def layer_distances(model: CLIP, prepared: Prepared, rows: np.ndarray, views: int = sslmem.VIEWS) -> np.ndarray:
    """L of SSLMem at the output of every layer, `[layers, N]`; LayerMem is its mean under g minus that under f."""
    parts = []
    for start, images in chunks(model, prepared.pictures, rows):
        made = (objectives.other_view(images, torch.Generator().manual_seed(start * 1009 + a)) for a in range(views))
        outputs = [[output for _, output in models.image_layers(model, x)] for x in made]
        parts.append(torch.stack([sslmem.distance(torch.stack(layer)) for layer in zip(*outputs, strict=True)]))
    return torch.cat(parts, dim=1).cpu().double().numpy()
