"""How far an encoder moves when its input is augmented: L of SSLMem, for the image and for the text encoder.

SSLMem(x) = L(g, x) - L(f, x), with L(f, x) the mean L2 distance between the unit-length representations of two
augmentations of x (Wang et al., ICLR 2024, arXiv 2401.12233; here section 3 of arXiv 2502.07830). For a text encoder
the captions of one image play the part of the augmentations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import models, objectives
from lib.data import Prepared

VIEWS = 5
# (smallest crop, colour cast), from light to extreme: among them the image's augmentation is matched to the captions',
# which move a text encoder nearly as far as another picture's caption would
STRENGTHS = ((0.9, 0.0), (0.5, 0.0), (0.5, 0.25), (0.1, 0.45), (0.05, 0.8), (0.02, 1.0), (0.02, 1.5))
CHUNK = 500


def distance(views: Tensor) -> Tensor:
    """Mean L2 distance between two of A representations, `[A, N, D]` to `[N]`; NaN where A is 1."""
    found = [(a - b).norm(dim=1) for a, b in combinations(views, 2)]
    return torch.stack(found).mean(dim=0) if found else torch.full((views.shape[1],), torch.nan)


@torch.no_grad()
def image_views(
    model: CLIP, prepared: Prepared, rows: np.ndarray, count: int, change: Callable[..., Tensor] = objectives.other_view
) -> Tensor:
    """Unit-length embeddings `[A, N, D]` of `count` augmented views, the same ones for every model; on the CPU."""
    where, parts = next(model.parameters()).device, []
    for start in range(0, len(rows), CHUNK):
        images = torch.from_numpy(prepared.pictures(rows[start : start + CHUNK])).to(where)
        made = [change(images, torch.Generator().manual_seed(start * 1009 + a)) for a in range(count)]
        parts.append(torch.stack([models.encode_image(model, x).cpu() for x in made]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def caption_views(model: CLIP, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Unit-length embeddings `[C, N, D]` of all captions of each pair, on the CPU."""
    where, parts = next(model.parameters()).device, []
    for start in range(0, len(rows), CHUNK):
        tokens = torch.from_numpy(prepared.tokens[rows[start : start + CHUNK]]).long().to(where)
        parts.append(torch.stack([models.encode_text(model, tokens[:, c]).cpu() for c in range(tokens.shape[1])]))
    return torch.cat(parts, dim=1)


def _augmented(images: Tensor, generator: torch.Generator, crop: float, colour: float) -> Tensor:
    return objectives.augment(images, crop, colour, generator)


def by_strength(model: CLIP, prepared: Prepared, rows: np.ndarray, pair_ids: np.ndarray) -> pd.DataFrame:
    """L of both encoders of one model: columns pair_id, `text` (captions), and `image_<i>` for each of STRENGTHS."""
    table = {"pair_id": pair_ids, "text": distance(caption_views(model, prepared, rows)).double().numpy()}
    for i, (crop, colour) in enumerate(STRENGTHS):
        change = partial(_augmented, crop=crop, colour=colour)
        table[f"image_{i}"] = distance(image_views(model, prepared, rows, VIEWS, change)).double().numpy()
    return pd.DataFrame(table)
