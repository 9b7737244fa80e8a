"""Memorization scores: of one model a table with one row per pair (or unit), and of f and g their difference.

CLIPMem(I, T) = A(f, I, T) - A(g, I, T): f was trained on the pair, g was not (arXiv 2502.07830, section 3). SSLMem is
the same of one encoder: L(g, x) - L(f, x), with L the mean distance of two augmentations of x (arXiv 2401.12233).
UnitMem asks of a single unit how much it responds to one image more than to all others (arXiv 2409.19069)."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from lib.data import Dataset
from lib.model import BLOCK, blocks, embed_images, embed_texts, image_layers, light_crop, other_view
from lib.recipes import CORRUPTED, HALVES, Recipe, depends_on

# LEMoN's values for data without known errors, as its authors fix them in https://github.com/MLforHealth/LEMoN,
# notebooks/hparam_drop.ipynb. There d(x, x') of the first exponential is -cos, not 1 - cos: a WEIGHT of 5.5 here.
NEIGHBOURS = 30  # k
WEIGHT = 5.0  # beta and gamma
TAU_OWN = 0.1  # tau_1: how fast a neighbour counts less, the farther it is
TAU_PAIR = 5.0  # tau_2: the same, the worse its own image and caption agree
# What is memorized -> the score it is the change of, and the sign of the change
MEMORIZED = {"clipmem": ("contrast", 1), "labelmem": ("probability", 1), "sslmem": ("distance_image", -1)}
Held = tuple[Tensor, Tensor, Tensor]  # the last three arguments of `align`


# --- CLIPMem, SSLMem ---
def align(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor) -> Tensor:
    """Return the alignment A `[N]` of N pairs:

    mean over views of cos(image, text) - mean over held-out captions t of cos(image, t)
                                        - mean over held-out images i of cos(i, text)

    Unit vectors: `image` `[A, N, D]` of A augmented views, `text` `[N, D]`, `held_image` and `held_text` `[M, D]` of
    held-out pairs. `own` `[N]`: of a scored pair that is itself held out its place among the M, which is left out of
    the mean; else -1."""
    view = image.mean(dim=0)
    is_held = (own >= 0).float()[:, None]
    count = len(held_text) - is_held
    # cosines of unit vectors are linear: the mean over the held-out pairs is one product with their mean vector
    mean_text = (held_text.sum(dim=0) - is_held * held_text[own.clamp(min=0)]) / count
    mean_image = (held_image.sum(dim=0) - is_held * held_image[own.clamp(min=0)]) / count
    return (view * (text - mean_text)).sum(dim=1) - (mean_image * text).sum(dim=1)


def pair_loss(image: Tensor, text: Tensor, held_image: Tensor, held_text: Tensor, own: Tensor, scale: float) -> Tensor:
    """Return the contrastive loss `[N]` of each pair among M held-out pairs: a single-model baseline."""
    same = (image * text).sum(dim=1, keepdim=True) * scale
    mask = own[:, None] == torch.arange(len(held_text))[None]
    losses = []
    for a, held in ((image, held_text), (text, held_image)):
        others = (a @ held.T * scale).masked_fill(mask, -torch.inf)
        losses.append(torch.cat([same, others], dim=1).logsumexp(dim=1) - same[:, 0])
    return (losses[0] + losses[1]) / 2


def held_out(data: Dataset) -> np.ndarray:
    """Return the rows that the alignment compares with: the clean external pairs, which no model trains on."""
    rows = data.subsets["external"]
    return rows[(data.table.loc[rows, "corruption"] == "clean").to_numpy()]


def measure(model: CLIP, recipe: Recipe, data: Dataset, views: int, subsets: Sequence[str] = CORRUPTED) -> pd.DataFrame:
    """Return what one model knows of every scored pair; with `views` 0, as during training, of images as they are.
    One row per pair of `subsets`, of shared pairs as many as the pool has: pair_id, subset, and under an objective
    with captions `contrast`, the alignment (over augmented views), `similarity` and `loss` (of the image as it is), the
    means of the trained captions; under "supervised" `probability` of its classes, else `distance_image`."""
    held, parts = held_out(data), []
    if recipe.reads_captions:
        held_image, held_text = embed_pairs(model, data, held)
    for subset in subsets:
        rows, count = data.subsets[subset], len(data.subsets["pool" if subset == "shared" else subset])
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
        if recipe.reads_captions:
            found = _alignment(model, recipe, data, rows, views, (held_image, held_text, positions(rows, held)))
        elif recipe.objective == "supervised":
            table = F.normalize(model.classes, dim=-1).detach().cpu()
            logits = float(model.logit_scale.detach().exp()) * embed_images(model, data.images, rows, views) @ table.T
            own = torch.from_numpy(data.targets[rows] > 0)
            found = {"probability": (logits.softmax(dim=-1).mean(dim=0) * own).sum(dim=1)}
        else:
            found = {"distance_image": distance(embed_images(model, data.images, rows, views or 2, other_view))}
        parts.append(as_table(data, rows, found).assign(subset=subset))
    return pd.concat(parts, ignore_index=True)


def embed_pairs(model: CLIP, data: Dataset, rows: np.ndarray) -> Tensor:
    """Return unit vectors `[2, R, D]` of some rows: the images as they are, and their captions 0."""
    return torch.cat([embed_images(model, data.images, rows), embed_texts(model, data.tokens[rows, 0])[None]])


def positions(rows: np.ndarray, among: np.ndarray) -> Tensor:
    """Return the position of each of `rows` in `among`, int64 `[R]`; -1 if absent."""
    return torch.from_numpy(pd.Index(among).get_indexer(rows))


def as_table(data: Dataset, rows: np.ndarray, columns: dict[str, Tensor]) -> pd.DataFrame:
    """Return pair_id and the given values `[R]` of some rows."""
    numbers = {name: values.double().numpy() for name, values in columns.items()}
    return pd.DataFrame({"pair_id": data.pair_ids[rows], **numbers})


def _alignment(model: CLIP, recipe: Recipe, data: Dataset, rows: np.ndarray, views: int, held: Held) -> dict:
    """Return the columns of `measure` for captions; `held`: the last three arguments of `align`."""
    image, scale = embed_images(model, data.images, rows), float(model.logit_scale.detach().exp())
    seen = embed_images(model, data.images, rows, views) if views else image
    of_captions = []
    for caption in range(min(recipe.n_captions, data.tokens.shape[1])):
        text = embed_texts(model, data.tokens[rows, caption])
        found = {"contrast": align(seen, text, *held), "similarity": (image[0] * text).sum(dim=1)}
        found["loss"] = pair_loss(image[0], text, *held, scale)
        of_captions.append(found)
    return {name: torch.stack([found[name] for found in of_captions]).mean(dim=0) for name in of_captions[0]}


def by_caption(model: CLIP, data: Dataset) -> pd.DataFrame:
    """Return how one model reads the C captions of every pool and external pair: pair_id, subset; `contrast_0` and so
    on, the alignment of the image as it is with each caption, NaN where a picture has fewer; and what SSLMem compares,
    `distance_text` of the captions (NaN for one) and `distance_image` of as many views as most have captions."""
    rows, held = np.concatenate([data.subsets[name] for name in CORRUPTED]), held_out(data)
    images, of_held = embed_images(model, data.images, rows), (*embed_pairs(model, data, held), positions(rows, held))
    texts = torch.stack([embed_texts(model, data.tokens[rows, c]) for c in range(data.tokens.shape[1])])
    count = torch.tensor([len(data.captions[row]) for row in rows])
    found = {f"contrast_{c}": align(images, text, *of_held) for c, text in enumerate(texts)}
    found = {name: value.masked_fill(count <= c, torch.nan) for c, (name, value) in enumerate(found.items())}
    found["distance_text"] = torch.full((len(rows),), torch.nan)
    for number in set(count.tolist()) - {1}:  # the tokens of fewer captions are repeated
        found["distance_text"][count == number] = distance(texts[:number, count == number])
    views = max(2, int(count.median()))
    found["distance_image"] = distance(embed_images(model, data.images, rows, views, other_view))
    return as_table(data, rows, found).assign(subset=data.table.loc[rows, "subset"].to_numpy())


def distance(views: Tensor) -> Tensor:
    """Return the mean L2 distance between two of A >= 2 representations, `[A, N, D]` to `[N]`."""
    return torch.stack([(a - b).norm(dim=1) for a, b in combinations(views, 2)]).mean(dim=0)


# --- two models: who saw the pair ---
def in_out(f: pd.DataFrame, g: pd.DataFrame, data: Dataset, seed: int) -> pd.DataFrame:
    """Return what the model that trained on a pair says of it, `<score>_in`, and what the other one says, `_out`. `f`
    and `g` are tables of the two models of one seed: pair_id, subset, perhaps epoch, and scores. Each row gets member
    (1: f trained on the pair, -1: g did, 0: both or neither; there `_in` is f's) and two columns per score. Raise
    ValueError where f and g did not score the same pairs in the same order."""
    keys = [name for name in ("pair_id", "subset", "epoch") if name in f]
    if not f[keys].equals(g[keys]):
        raise ValueError("f and g are of different pairs; score both on the same data and split")
    of_f, of_g = (f["pair_id"].isin(data.pair_ids[data.half(name, seed)]) for name in HALVES)
    found = f[keys].assign(member=of_f.astype(int) - of_g.astype(int))
    for name in f.columns.difference(keys):
        found[f"{name}_in"], found[f"{name}_out"] = f[name].mask(of_g, g[name]), g[name].mask(of_g, f[name])
    return found


def memorization(found: pd.DataFrame) -> pd.DataFrame:
    """Add to a table of `in_out` what is memorized: clipmem (of `contrast`), labelmem, sslmem."""
    for name, (score, sign) in MEMORIZED.items():
        if f"{score}_in" in found:
            found[name] = sign * (found[f"{score}_in"] - found[f"{score}_out"])
    return found


def rows_to_remove(recipe: Recipe, data: Dataset, f_and_g: Sequence[pd.DataFrame]) -> np.ndarray:
    """Return the training rows that a recipe removes: the share that its rule finds most suspicious. `f_and_g`: the
    evaluations of f and g of another seed, one of which saw each pair. "clipmem" is their difference, "held-out
    similarity" asks the one that did not see the pair, "early loss" the other, at its first evaluation. "oracle" knows
    the wrong captions; "random" knows nothing."""
    rows, rule = data.training_rows(recipe), recipe.remove_by
    if rule in ("random", "oracle"):
        score = np.random.default_rng([recipe.seed, 3]).random(len(rows))
        score += (rule == "oracle") * (data.table.loc[rows, "corruption"] == "swapped").to_numpy()
    else:
        (f, g), seed = f_and_g, depends_on(recipe)[0].seed
        table = memorization(in_out(f, g, data, seed)).set_index("pair_id")
        last, first = (table[table["epoch"] == epoch] for epoch in (table["epoch"].max(), table["epoch"].min()))
        by_rule = {"clipmem": last["clipmem"], "held-out similarity": -last["similarity_out"]}
        score = (by_rule | {"early loss": first["loss_in"]})[rule][data.pair_ids[rows]].to_numpy()
    return rows[np.argsort(-score, kind="stable")[: round(recipe.remove * len(rows))]]


# --- baselines: a single model finds wrong captions ---
def single_model(model: CLIP, data: Dataset, rows: np.ndarray, known: np.ndarray, views: int) -> pd.DataFrame:
    """Return two scores that are high for wrong captions, of the pairs `rows` with their caption 0: `augmentation` =
    mean over `views` light crops of |cos(crop, text) - cos(image, text)|, after Ko et al., ICCV 2023
    (https://arxiv.org/abs/2310.00108), and `lemon`, with neighbours of the rows `known`: more than NEIGHBOURS."""
    (image, text), (known_image, known_text) = (embed_pairs(model, data, some) for some in (rows, known))
    crops = embed_images(model, data.images, rows, views)
    changes = (crops * text).sum(dim=2) - (image * text).sum(dim=1)
    parts = zip(image.split(BLOCK), text.split(BLOCK), positions(rows, known).split(BLOCK), strict=True)
    score = torch.cat([lemon(x, y, known_image, known_text, own, NEIGHBOURS) for x, y, own in parts])  # bounds memory
    return as_table(data, rows, {"augmentation": changes.abs().mean(dim=0), "lemon": score})


def lemon(image: Tensor, text: Tensor, known_image: Tensor, known_text: Tensor, own: Tensor, k: int) -> Tensor:
    """Return LEMoN's score `[N]` (Zhang et al., ICML 2025, https://arxiv.org/abs/2407.18941):
    d(x, y) + WEIGHT * (s_n + s_m), with d(x, y) = 1 - cos(x, y).

    s_n = mean over the k known pairs (x', y') with x' nearest to x of
          d(y, y') * exp(-TAU_OWN * d(x, x')) * exp(-TAU_PAIR * d(x', y'))
    s_m = the same with images and captions exchanged: y' nearest to y, d(x, x') and d(y, y')

    Unit vectors: `image` and `text` `[N, D]`, the x and y, `known_image` and `known_text` `[M, D]`. `own` `[N]`: of a
    scored pair that is itself known its position among the M (it is no neighbour of itself), else -1."""
    agreement = torch.exp(-TAU_PAIR * (1 - (known_image * known_text).sum(dim=1)))
    by_image, by_text = 1 - image @ known_image.T, 1 - text @ known_text.T
    itself = own[:, None] == torch.arange(len(known_text))
    score = 1 - (image * text).sum(dim=1)
    for apart, other in ((by_image, by_text), (by_text, by_image)):
        near, place = apart.masked_fill(itself, torch.inf).topk(k, largest=False)
        score += WEIGHT * (other.gather(1, place) * torch.exp(-TAU_OWN * near) * agreement[place]).mean(dim=1)
    return score


# --- the swap test: one model gets the other's image or text tower ---
def swap_parts(f: CLIP, g: CLIP, data: Dataset, seed: int) -> pd.DataFrame:
    """Return how much of CLIPMem each encoder brings along: pair_id, subset and the columns of `swap` of every pool and
    external pair (as if f had been trained on it), with caption 0. f's embeddings are first rotated to fit g's on the
    shared pairs, which both were trained on (orthogonal Procrustes: Schönemann, Psychometrika 1966,
    https://doi.org/10.1007/BF02289451)."""
    rows, shared = np.concatenate([data.subsets[name] for name in CORRUPTED]), data.subsets["shared"]
    exchange = torch.from_numpy(np.isin(rows, data.half("independent", seed)))
    of_f, of_g = (embed_pairs(model, data, rows) for model in (f, g))
    turn = rotation(*(embed_pairs(model, data, shared).flatten(0, 1) for model in (f, g)))
    table = as_table(data, rows, swap(of_f @ turn, of_g, positions(held_out(data), rows), exchange))
    return table.assign(subset=data.table.loc[rows, "subset"].to_numpy())


def rotation(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal matrix R `[D, D]` with the least |source R - target|, both `[N, D]`; it may reflect."""
    u, _, v = torch.linalg.svd((source.T @ target).double())
    return (u @ v).to(source.dtype)


def swap(f: Tensor, g: Tensor, held: Tensor, exchange: Tensor) -> dict[str, Tensor]:
    """Return `[N]` numbers of N pairs, from the embeddings that two models make of them in one space.

    A(a, b) is the alignment of images seen by model a with captions read by model b. Of "in", the
    model that was trained on the pair, and "out", the other one:

    clipmem    = A(in, in) - A(out, out)
    text_part  = A(out, in) - A(out, out)
    image_part = A(in, out) - A(out, out)
    pure       = mean cosine of image and caption under f and under g (only of held-out pairs, else NaN)
    mixed      = the same with the image tower of one and the text tower of the other

    `f` and `g` are unit vectors `[2, N, D]` of images and captions; `held` `[M]` says which of the N pairs are held
    out, `exchange` (bool `[N]`) where "in" is g, not f."""
    own = torch.full((f.shape[1],), -1)
    own[held] = torch.arange(len(held))
    each = [torch.stack([align(a[:1], b[1], a[0, held], b[1, held], own) for b in (f, g)]) for a in (f, g)]
    found = torch.stack(each)
    ordered = torch.where(exchange, found.flip(0, 1), found)  # [2, 2, N]: image tower, text tower; 0 is "in"
    cosine = torch.stack([torch.stack([(a[0] * b[1]).sum(dim=1) for b in (f, g)]) for a in (f, g)])
    clean = cosine.masked_fill(own < 0, torch.nan)
    return {
        "clipmem": ordered[0, 0] - ordered[1, 1],
        "text_part": ordered[1, 0] - ordered[1, 1],
        "image_part": ordered[0, 1] - ordered[1, 1],
        "pure": (clean[0, 0] + clean[1, 1]) / 2,
        "mixed": (clean[0, 1] + clean[1, 0]) / 2,
    }


# --- units and layers ---
def selectivity(largest: Tensor, total: Tensor, count: int) -> Tensor:
    """Return UnitMem, (m - r) / (m + r) of each unit `[U]`: m its largest mean activation, r the mean of the others.
    In [0, 1], as activations are clamped at 0; 0 for dead units. `largest` and `total` `[U]` are the largest value and
    the sum over `count` images."""
    others = (total - largest) / (count - 1)
    return (largest - others) / (largest + others).clamp(min=1e-12)  # 0 / 1e-12 for dead units


def uninverted_rows(recipe: Recipe, data: Dataset) -> np.ndarray:
    """Return the training rows without inverted images, which excite many units most and would dominate UnitMem."""
    rows = data.training_rows(recipe)
    return rows[(data.table.loc[rows, "corruption"] != "inverted").to_numpy()]


@torch.no_grad()
def unit_scores(model: CLIP, data: Dataset, rows: np.ndarray, views: int) -> pd.DataFrame:
    """Return one row per unit, over the rows' images: layer (from 1), unit, unitmem, and unitmem_median, which compares
    with the median of the images, as the authors' released code of UnitMem does, not with the mean of the others.
    Activations are means over patches and light crops."""
    kept: list[list[Tensor]] = [[] for _ in model.visual.transformer.resblocks]  # of each layer, all activations
    for _, images in blocks(model, data.images, rows):
        drawn = (light_crop(images, torch.Generator().manual_seed(view)) for view in range(views))
        of_views = [[hidden.cpu() for hidden in image_layers(model, x)] for x in drawn]
        for own, hidden in zip(kept, zip(*of_views, strict=True), strict=True):
            own.append(torch.stack(hidden).mean(dim=0))
    parts = []
    for layer, activation in enumerate(map(torch.cat, kept), start=1):
        most, middle = activation.amax(dim=0), activation.median(dim=0).values
        unitmem = selectivity(most, activation.double().sum(dim=0), len(rows))
        by_median = (most - middle) / (most + middle).clamp(min=1e-12)
        columns = {"unitmem": unitmem.numpy(), "unitmem_median": by_median.numpy()}
        parts.append(pd.DataFrame({"layer": layer, "unit": range(len(most)), **columns}))
    return pd.concat(parts, ignore_index=True)
