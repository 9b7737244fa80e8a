"""How far an encoder moves when its input is augmented: L of SSLMem, for the image and for the text encoder.

SSLMem(x) = L(g, x) - L(f, x), with L(f, x) the mean L2 distance between the unit-length representations of two
augmentations of x (Wang et al., ICLR 2024, arXiv 2401.12233; here section 3 of arXiv 2502.07830). For a text encoder
the captions of one image play the part of the augmentations.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import objectives
from lib.data import Prepared
from lib.embeddings import of_images, of_texts

VIEWS = 5
# (smallest crop, colour cast), from light to extreme: among them the image's augmentation is matched to the captions',
# which move a text encoder nearly as far as another picture's caption would
STRENGTHS = ((0.9, 0.0), (0.5, 0.0), (0.5, 0.25), (0.1, 0.45), (0.05, 0.8), (0.02, 1.0), (0.02, 1.5))


def distance(views: Tensor) -> Tensor:
    """Mean L2 distance between two of A representations, `[A, N, D]` to `[N]`; NaN where A is 1."""
    found = [(a - b).norm(dim=1) for a, b in combinations(views, 2)]
    return torch.stack(found).mean(dim=0) if found else torch.full((views.shape[1],), torch.nan)


def of_image_encoder(model: CLIP, prepared: Prepared, rows: np.ndarray, views: int = VIEWS) -> Tensor:
    """L `[N]` of the image encoder, under the augmentation that a self-supervised model is trained with."""
    return distance(of_images(model, prepared.pictures, rows, views, objectives.other_view))


def caption_views(model: CLIP, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Embeddings `[C, N, D]` of all captions of each pair."""
    return torch.stack([of_texts(model, prepared, rows, c) for c in range(prepared.tokens.shape[1])])


def of_text_encoder(model: CLIP, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """L `[N]` of the text encoder, over all captions of each pair."""
    return distance(caption_views(model, prepared, rows))


def by_encoder(model: CLIP, prepared: Prepared, rows: np.ndarray) -> pd.DataFrame:
    """L of both encoders of one model: columns pair_id, `image`, `text`."""
    found = {"image": of_image_encoder(model, prepared, rows), "text": of_text_encoder(model, prepared, rows)}
    numbers = {name: values.double().numpy() for name, values in found.items()}
    return pd.DataFrame({"pair_id": prepared.pairs.pair_ids[rows], **numbers})


def _augmented(images: Tensor, generator: torch.Generator, crop: float, colour: float) -> Tensor:
    return objectives.augment(images, crop, colour, generator)


def by_strength(model: CLIP, prepared: Prepared, rows: np.ndarray) -> pd.DataFrame:
    """L of both encoders of one model: columns pair_id, `text` (captions), and `image_<i>` for each of STRENGTHS."""
    text = of_text_encoder(model, prepared, rows).double().numpy()
    table = {"pair_id": prepared.pairs.pair_ids[rows], "text": text}
    for i, (crop, colour) in enumerate(STRENGTHS):
        change = partial(_augmented, crop=crop, colour=colour)
        table[f"image_{i}"] = distance(of_images(model, prepared.pictures, rows, VIEWS, change)).double().numpy()
    return pd.DataFrame(table)
