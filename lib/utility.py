"""What a model is good for: retrieval on pairs it has never seen."""

from __future__ import annotations

from torch import Tensor


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
