"""Unit-length embeddings of many pictures and captions by one model, a chunk at a time; the results on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import models
from lib.data import Prepared

CHUNK = 500  # pairs encoded at a time
Pictures = Callable[[np.ndarray], np.ndarray]  # rows [R] to uint8 [R, 3, H, W], as `Prepared.pictures`
Change = Callable[[Tensor, torch.Generator], Tensor]  # uint8 [R, 3, H, W] to the same shape, normalised for the model


def chunks(model: CLIP, pictures: Pictures, rows: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """The pictures of some rows in parts, uint8 `[R, 3, H, W]` on the model's device; with each, where it starts."""
    where = next(model.parameters()).device
    for start in range(0, len(rows), CHUNK):
        yield start, torch.from_numpy(pictures(rows[start : start + CHUNK])).to(where)


def light_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of 90 % or more of each picture: the augmentation of a score."""
    return models.random_crops(images, 0.9, generator)


@torch.no_grad()
def of_images(model: CLIP, pictures: Pictures, rows: np.ndarray, count: int = 0, change: Change = light_crop) -> Tensor:
    """`[A, N, D]`: `count` changed views of each picture, the same for every model; with 0 the picture as it is."""
    parts = []
    for start, images in chunks(model, pictures, rows):
        views = (change(images, torch.Generator().manual_seed(start * 1009 + a)) for a in range(count))
        inputs = views if count else [models.normalise(images)]
        parts.append(torch.stack([models.encode_image(model, x).cpu() for x in inputs]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def of_texts(model: CLIP, prepared: Prepared, rows: np.ndarray, caption: int = 0) -> Tensor:
    """`[N, D]`, of one caption of each pair."""
    tokens = torch.from_numpy(prepared.tokens[rows, caption]).long().to(next(model.parameters()).device)
    return torch.cat([models.encode_text(model, part).cpu() for part in tokens.split(CHUNK)])
