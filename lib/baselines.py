"""Scores of a single model that are meant to find wrong captions: CLIPMem's competitors, which need no second model.

`augmentation` is after the augmentation-enhanced attack of Ko et al., ICCV 2023 (https://arxiv.org/abs/2310.00108);
`lemon` is LEMoN, Zhang et al., ICML 2025 (https://arxiv.org/abs/2407.18941). A larger score is more suspicious.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib.model import embed_images, embed_texts
from lib.scores import as_table

if TYPE_CHECKING:
    from lib.data import Prepared

# LEMoN's values for data without known errors, as its authors fix them in https://github.com/MLforHealth/LEMoN,
# notebooks/hparam_drop.ipynb. There d(x, x') of the first exponential is -cos, not 1 - cos: a WEIGHT of 5.5 here.
NEIGHBOURS = 30  # k
WEIGHT = 5.0  # beta and gamma
TAU_OWN = 0.1  # tau_1: how fast a neighbour counts less, the farther it is
TAU_PAIR = 5.0  # tau_2: the same, the worse its own image and caption agree


def single_model(model: CLIP, prepared: Prepared, rows: np.ndarray, known: np.ndarray, views: int) -> pd.DataFrame:
    """Return two scores of some pairs with their caption 0: columns pair_id, `augmentation`, `lemon`.

    augmentation = mean over light crops of |cos(crop, text) - cos(image, text)|

    Args:
        rows: `[R]`, the pairs.
        known: rows that the model was trained on, among which LEMoN looks for neighbours; more than NEIGHBOURS.
        views: number of light crops.
    """
    image, known_image = (embed_images(model, prepared.images, some)[0] for some in (rows, known))
    text, known_text = (embed_texts(model, prepared.tokens[some, 0]) for some in (rows, known))
    crops = embed_images(model, prepared.images, rows, views)
    changes = (crops * text).sum(dim=2) - (image * text).sum(dim=1)
    own = torch.from_numpy(pd.Index(known).get_indexer(rows))
    found = {
        "augmentation": changes.abs().mean(dim=0),
        "lemon": lemon(image, text, known_image, known_text, own, NEIGHBOURS),
    }
    return as_table(prepared, rows, found)


def lemon(image: Tensor, text: Tensor, known_image: Tensor, known_text: Tensor, own: Tensor, k: int) -> Tensor:
    """Return LEMoN's score `[N]`: d(x, y) + WEIGHT * (s_n + s_m), with d(x, y) = 1 - cos(x, y).

    s_n = mean over the k known pairs (x', y') with x' nearest to x of
          d(y, y') * exp(-TAU_OWN * d(x, x')) * exp(-TAU_PAIR * d(x', y'))
    s_m = the same with images and captions exchanged: y' nearest to y, d(x, x') and d(y, y')

    Args:
        image, text: unit vectors `[N, D]`, the x and y.
        known_image, known_text: unit vectors `[M, D]` of the known pairs.
        own: `[N]`, where a scored pair is itself known, its place among the M (no neighbour of itself), else -1.
        k: number of neighbours. Which of equally near ones count is left open.
    """
    agreement = torch.exp(-TAU_PAIR * (1 - (known_image * known_text).sum(dim=1)))
    by_image, by_text = 1 - image @ known_image.T, 1 - text @ known_text.T
    itself = own[:, None] == torch.arange(len(known_text))
    score = 1 - (image * text).sum(dim=1)
    for distance, other in ((by_image, by_text), (by_text, by_image)):
        near, places = distance.masked_fill(itself, torch.inf).topk(k, largest=False)
        score += WEIGHT * (other.gather(1, places) * torch.exp(-TAU_OWN * near) * agreement[places]).mean(dim=1)
    return score
