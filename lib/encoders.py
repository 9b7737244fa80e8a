"""Which encoder holds a memory: the swap test, which gives one model of CLIPMem the other's image or text tower.

Two models need not agree on the axes of their embeddings. So f's are first rotated to fit g's (orthogonal Procrustes:
Schönemann, Psychometrika 1966, https://doi.org/10.1007/BF02289451) on the shared pairs, which both were trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib.model import embed_images, embed_texts
from lib.scores import SUBSETS, align, as_table, embed_pairs, held_out, places

if TYPE_CHECKING:
    from lib.data import Prepared


def swap_parts(f: CLIP, g: CLIP, prepared: Prepared, seed: int) -> pd.DataFrame:
    """Return how much of CLIPMem each encoder brings along; one row per pool pair and external pair, with caption 0.

    Columns: pair_id, subset and those of `swap`; of an external pair as if f had been trained on it. `pure` and `mixed`
    are of clean external pairs only, the control that towers of two models understand each other; elsewhere NaN.
    """
    rows, shared = np.concatenate([prepared.subsets[name] for name in SUBSETS]), prepared.subsets["shared"]
    exchange = torch.from_numpy(np.isin(rows, prepared.half("independent", seed)))
    of_f, of_g = (embed_pairs(model, prepared, rows) for model in (f, g))
    turn = rotation(*(embed_pairs(model, prepared, shared).flatten(0, 1) for model in (f, g)))
    table = as_table(prepared, rows, swap(of_f @ turn, of_g, places(held_out(prepared), rows), exchange))
    return table.assign(subset=prepared.table.loc[rows, "subset"].to_numpy())


def rotation(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal matrix R `[D, D]` with the least |source R - target|, both `[N, D]`; it may reflect."""
    u, _, v = torch.linalg.svd((source.T @ target).double())
    return (u @ v).to(source.dtype)


def swap(f: Tensor, g: Tensor, held: Tensor, exchange: Tensor) -> dict[str, Tensor]:
    """Return `[N]` numbers of N pairs, from the embeddings that two models make of them in one space.

    A(a, b) is the alignment (its form `contrast`) of images seen by model a with captions read by model b. Of "in", the
    model that was trained on the pair, and "out", the other one:

    clipmem    = A(in, in) - A(out, out)
    text_part  = A(out, in) - A(out, out)
    image_part = A(in, out) - A(out, out)
    pure       = mean cosine of image and caption under f and under g (only of held-out pairs, else NaN)
    mixed      = the same with the image tower of one and the text tower of the other

    `f` and `g` are unit vectors `[2, N, D]` of images and captions; `held` `[M]` says which of the N pairs are held
    out, `exchange` (bool `[N]`) where "in" is g, not f.
    """
    own = torch.full((f.shape[1],), -1)
    own[held] = torch.arange(len(held))
    of = [[align(a[:1], b[1], a[0, held], b[1, held], own) for b in (f, g)] for a in (f, g)]
    plain, contrast = (torch.stack([torch.stack([x[form] for x in row]) for row in of]) for form in (0, 1))
    ordered = torch.where(exchange, contrast.flip(0, 1), contrast)  # [2, 2, N]: image tower, text tower; 0 is "in"
    clean = plain.masked_fill(own < 0, torch.nan)
    return {
        "clipmem": ordered[0, 0] - ordered[1, 1],
        "text_part": ordered[1, 0] - ordered[1, 1],
        "image_part": ordered[0, 1] - ordered[1, 1],
        "pure": (clean[0, 0] + clean[1, 1]) / 2,
        "mixed": (clean[0, 1] + clean[1, 0]) / 2,
    }


def by_caption(model: CLIP, prepared: Prepared, rows: np.ndarray) -> pd.DataFrame:
    """Return the alignment of pictures as they are with each of their captions: does memory hang on the exact words?

    Columns: pair_id and, for each caption c, `contrast_<c>`, among held-out pairs with their caption 0. A picture with
    fewer captions than others repeats its own.
    """
    held, image, found = held_out(prepared), embed_images(model, prepared.images, rows), {}
    (held_image, held_text), own = embed_pairs(model, prepared, held), places(rows, held)
    for caption in range(prepared.tokens.shape[1]):
        text = embed_texts(model, prepared.tokens[rows, caption])
        found[f"contrast_{caption}"] = align(image, text, held_image, held_text, own).contrast
    return as_table(prepared, rows, found)
