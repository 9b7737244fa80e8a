"""What a model is good for: retrieval on pairs it has never seen."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import probes
from lib.data import Prepared
from lib.memorization import embed


def along_training(model: CLIP, objective: str, prepared: Prepared) -> dict[str, float]:
    """Utility on the disjoint pairs, quick enough for every look: `probe`, a linear probe of the labels fitted on the
    shared pairs (`probes.ridge_probe`), and retrieval where there are captions."""
    train, test = prepared.subsets["shared"], prepared.subsets["disjoint"]
    seen = embed(model, prepared, train, texts=False)[0][0]
    image, text = embed(model, prepared, test, texts=objective == "caption")
    features = torch.cat([seen, image[0]]).numpy()
    targets = prepared.targets[np.concatenate([train, test])]
    split = len(train)
    found = {"probe": probes.ridge_probe(features[:split], targets[:split], features[split:], targets[split:])}
    return found | (retrieval(image[0], text) if objective == "caption" else {})


def retrieval(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 10)) -> dict[str, float]:
    """Recall at k both ways, in [0, 1], for N matching pairs.

    A pair counts as found when fewer than k others are more similar; a tie counts as half a pair, so a model that gives
    all captions one embedding finds nothing by the order of the rows.

    Args:
        image: unit vectors `[N, D]`.
        text: unit vectors `[N, D]`, text i belongs to image i.

    Returns:
        `image_to_text_r1`, `text_to_image_r1`, `image_to_text_r10`, ...
    """
    similarity = image @ text.T
    out = {}
    for way, s in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        own = s.diagonal()[:, None]
        rank = (s > own).sum(dim=1) + ((s == own).sum(dim=1) - 1) / 2
        out.update({f"{way}_r{k}": float((rank < k).double().mean()) for k in ks})
    return out
