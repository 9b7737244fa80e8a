"""The work that lib.benchmark times: a made-up captioned set, the operations of a model, the peak of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from torch import Tensor

from lib import models
from lib.captions import tokenize
from lib.data import Prepared, split
from lib.pairs import Pairs
from lib.recipes import Data, Recipe

WORDS = 8000  # vocabulary of the made-up captions, near Flickr8k's 8,095
CAPTION_TOKENS = (14.4, 3.9)  # mean and deviation of Flickr8k's caption lengths, start and end token included
PEAK_SIZES = (512, 1024, 2048)  # sides of the square products that the peak is searched among
PEAK_SECONDS = 0.4  # how long each of them is repeated


def synthetic(data: Data) -> Prepared:
    """A captioned set of the sizes in `data`: smooth pictures with noise, and captions of common words whose lengths
    are distributed as Flickr8k's. It takes as long to train on as photographs, and says nothing else about them."""
    n, rng = sum(data.sizes().values()), np.random.default_rng(0)
    captions = [[text] for text in _captions(n, data.context, rng)]
    pairs = Pairs("synthetic", _pictures(n, data.pixels), captions, np.arange(n), None, (), None, None, "synthetic")
    with TemporaryDirectory() as folder:
        tokens, token_ids = tokenize(pairs, captions, data.context, Path(folder))
    return Prepared(data, pairs, split(pairs, data), captions, tokens, token_ids, pd.DataFrame(), "synthetic")


def _captions(n: int, context: int, rng: np.random.Generator) -> list[str]:
    from open_clip import get_tokenizer  # takes seconds to import

    whole = (word.removesuffix("</w>") for word in get_tokenizer("ViT-B-32").encoder if word.endswith("</w>"))
    words = np.array([word for word in whole if word.isalpha() and word.isascii()][:WORDS])
    lengths = rng.normal(*CAPTION_TOKENS, n).round().clip(3, context).astype(int) - 2
    return [" ".join(rng.choice(words, length)) for length in lengths]


def _pictures(n: int, pixels: int) -> np.ndarray:
    """uint8 `[n, 3, pixels, pixels]`."""
    generator, images = torch.Generator().manual_seed(0), np.empty((n, 3, pixels, pixels), np.uint8)
    for start in range(0, n, 1000):
        coarse = torch.rand(len(images[start : start + 1000]), 3, 6, 6, generator=generator) * 255
        smooth = F.interpolate(coarse, size=pixels, mode="bilinear")
        noisy = smooth + 12 * torch.randn(smooth.shape, generator=generator)
        images[start : start + 1000] = noisy.clamp(0, 255).byte().numpy()
    return images


def operations(model: CLIP, tokens: int, batch: int, executed: bool = False) -> float:
    """Floating-point operations of the matrix products that training on one pair takes.

    A product of an `[a, b]` and a `[b, c]` matrix counts 2abc; the backward pass counts twice the forward pass. Counted
    forward: the patch embedding; in every block the query, key and value projection, the products of queries with keys
    and of weights with values (all of them, masked or not), the output projection and the two layers of the MLP; the
    two projections to the embedding; and the logits, computed both ways. Nothing else (norms, GELU, softmax,
    augmentation, optimiser) counts.

    Args:
        tokens: length of the captions as run.
        batch: pairs a batch, for the logits.
        executed: count only what lib.models runs: the last block of each tower for its pooled position alone.
    """
    visual, text = model.visual, model.transformer
    embedding = visual.proj.shape[1]
    patches, patch = visual.grid_size[0] * visual.grid_size[1], visual.conv1.weight[0].numel()
    forward = 2 * patches * patch * visual.transformer.width
    forward += _tower(patches + 1, visual.transformer.width, len(visual.transformer.resblocks), executed)
    forward += _tower(tokens, text.width, len(text.resblocks), executed)
    forward += 2 * (visual.transformer.width + text.width) * embedding + 2 * 2 * batch * embedding
    return 3.0 * forward


def _tower(n: int, width: int, layers: int, executed: bool) -> int:
    """Forward operations of a tower on n positions, with the usual MLP of 4 times its width."""
    block = 2 * n * 12 * width**2 + 2 * 2 * n**2 * width
    pooled = 2 * (10 + 2 * n) * width**2 + 2 * 2 * n * width  # keys and values of all positions, the rest of one
    return (layers - 1) * block + (pooled if executed else block)


def run_length(prepared: Prepared, rows: np.ndarray, batch: int, groups: int = 1) -> float:
    """Mean length in tokens of captions as run, when each of `groups` of like length in a batch is cut to its longest.

    One group: cut to the longest of the batch. On CUDA always the context.
    """
    if models.device().type == "cuda":
        return prepared.tokens.shape[2]
    lengths, rng = (prepared.tokens[rows, 0] > 0).sum(axis=1), np.random.default_rng(0)
    batches = (np.sort(rng.choice(lengths, min(batch, len(rows)), replace=False)) for _ in range(64))
    return float(np.mean([part.max() for one in batches for part in np.array_split(one, groups)]))


def matrix_peak() -> float:
    """GFLOP/s of the fastest square matrix product here, on all cores in float32, or on a GPU in bfloat16."""
    where = models.device()
    kind = torch.bfloat16 if where.type == "cuda" else torch.float32
    sizes = (*PEAK_SIZES, 4096, 8192) if where.type == "cuda" else PEAK_SIZES
    return max(_product_rate(size, kind, where) for size in sizes)


def _product_rate(size: int, kind: torch.dtype, where: torch.device) -> float:
    a, b = (torch.randn(size, size, device=where).to(kind) for _ in range(2))
    out, wait = torch.empty_like(a), waiter(where)
    torch.mm(a, b, out=out)
    wait()
    done, start = 0, perf_counter()
    while perf_counter() - start < PEAK_SECONDS:
        for _ in range(4):
            torch.mm(a, b, out=out)
        wait()
        done += 4
    return done * 2 * size**3 / (perf_counter() - start) / 1e9


def waiter(where: torch.device) -> Callable[[], None]:
    """A function that returns when the device has done all it was given."""
    return torch.cuda.synchronize if where.type == "cuda" else lambda: None


@torch.no_grad()
def loss_gaps(recipe: Recipe, prepared: Prepared, context: int, batches: int) -> list[float]:
    """For each of some batches, |loss of our forward pass, trimmed - loss of open_clip's own, padded to `context`|.

    Both models hold the same weights; what the longer context adds to the table of positions is never read.
    """
    rows = np.resize(np.concatenate([prepared.subsets[name] for name in recipe.trained_on]), (batches, recipe.batch))
    length, size = prepared.tokens.shape[2], len(prepared.token_ids)
    ours = models.build(recipe.model, recipe.data.pixels, size, length, recipe.seed)
    theirs = models.build(recipe.model, recipe.data.pixels, size, context, recipe.seed)
    weights = {name: t for name, t in ours.state_dict().items() if name not in ("positional_embedding", "attn_mask")}
    theirs.load_state_dict(weights, strict=False)
    theirs.positional_embedding[:length] = ours.positional_embedding
    both = [_batch(prepared, part) for part in rows]
    return [abs(_our_loss(ours, *batch) - _their_loss(theirs, *batch)) for batch in both]


def _batch(prepared: Prepared, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Normalised images `[B, 3, H, W]`, not augmented, and tokens `[B, L]`."""
    images = models.normalise(torch.from_numpy(np.ascontiguousarray(prepared.pairs.images[rows])))
    return images, torch.from_numpy(prepared.tokens[rows, 0]).long()


def _our_loss(model: CLIP, images: Tensor, tokens: Tensor) -> float:
    trimmed = tokens[:, : int((tokens > 0).sum(dim=1).max())]
    image, text = models.encode_image(model, images), models.encode_text(model, trimmed)
    return float(ClipLoss()(image, text, model.logit_scale.exp()))


def _their_loss(model: CLIP, images: Tensor, tokens: Tensor) -> float:
    out = model(images, F.pad(tokens, (0, model.context_length - tokens.shape[1])))
    return float(ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"]))
