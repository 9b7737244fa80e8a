"""What an image is trained to agree with: its caption, its class label, or another view of itself.

One loop serves all three; only the partner changes. Images are augmented alike under each: light random crops. The
other view is changed far more, because a view of light crops is too easy to agree with.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP
from torch import Tensor

from lib import model as models
from lib.recipes import Recipe

VIEW_CROP, VIEW_COLOUR, VIEW_GREY = 0.3, 0.4, 0.2  # of the other view: as SimCLR's, but milder


@dataclass(frozen=True)
class Resident:
    """What training reads of P pairs, on the device."""

    images: Tensor  # uint8 [N, 3, H, W]; on the CPU the data set itself, which is memory-mapped
    rows: Tensor  # [P], where the pairs lie in `images`
    tokens: Tensor  # [P, C, L]
    targets: Tensor  # [P, K], the share of each class in a pair's label
    regrouped: Tensor | None = None  # [P] bool, the pairs that fill batches of their own


def batch(pairs: Resident, places: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return augmented images `[B, 3, H, W]` and their partners: tokens `[B, L]`, class shares `[B, K]` or views."""
    places = places.to(pairs.images.device)
    images = pairs.images[pairs.rows[places]]
    first = augment(images, recipe.crop, recipe.colour, generator)
    if recipe.objective == "label":
        return first, pairs.targets[places]
    if recipe.objective == "view":
        return first, other_view(images, generator)
    which = torch.zeros(len(places), dtype=torch.long)
    if recipe.n_captions > 1:
        width = min(recipe.n_captions, pairs.tokens.shape[1])
        which = torch.randint(width, (len(places),), generator=generator)
    tokens = pairs.tokens[places, which.to(places.device)]
    return first, drop_words(tokens, recipe.word_dropout, generator) if recipe.word_dropout else tokens


def augment(images: Tensor, crop: float, colour: float, generator: torch.Generator) -> Tensor:
    """Return normalised random crops of uint8 `[N, 3, H, W]` that keep at least `crop` of the area, with a colour cast.

    A cast multiplies every channel by its own factor in [1 - colour, 1 + colour] and adds up to `colour` to all three.
    """
    x = models.random_crops(images, crop, generator)
    if colour:
        factors = 1 + colour * (2 * torch.rand(len(x), 3, 1, 1, generator=generator) - 1)
        added = colour * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)
        x = x * factors.to(x.device) + added.to(x.device)
    return x


def other_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return strongly changed views of uint8 `[N, 3, H, W]`, normalised: partners under `view`; SSLMem compares two."""
    x = augment(images, VIEW_CROP, VIEW_COLOUR, generator)
    mirrored, grey = (torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) for _ in range(2))
    x = torch.where(mirrored < 0.5, x.flip(3), x)
    return torch.where(grey < VIEW_GREY, x.mean(dim=1, keepdim=True).expand_as(x), x)


def drop_words(tokens: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Leave out every word token of `[B, L]` with probability `share`, never start and end, and move up the rest."""
    chance = torch.rand(tokens.shape, generator=generator).to(tokens.device)
    end = tokens == tokens.amax(dim=1, keepdim=True)
    left_out = (chance < share) & (tokens > 0) & ~end
    left_out[:, 0] = False
    order = (left_out | (tokens == 0)).int().argsort(dim=1, stable=True)
    return tokens.masked_fill(left_out, 0).gather(1, order)


def loss(
    model: CLIP, recipe: Recipe, images: Tensor, partners: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return the loss of one batch: symmetric contrastive for captions and views, cross-entropy over class labels, and
    for `sigmoid` SigLIP's, a yes or no for every image and caption of the batch (arXiv 2303.15343).

    `generator` draws the noise of a recipe that has some.
    """
    image = _embedding(model, "image", images, recipe, generator)
    scale = model.logit_scale.exp()
    if recipe.objective == "label":
        return F.cross_entropy(scale * image @ F.normalize(model.classes, dim=-1).T, partners)
    partner = _embedding(model, "text" if recipe.reads_captions else "image", partners, recipe, generator)
    if recipe.objective == "sigmoid":
        return SigLipLoss()(image, partner, scale, model.logit_bias)
    return ClipLoss()(image, partner, scale)


def _embedding(model: CLIP, tower: str, x: Tensor, recipe: Recipe, generator: torch.Generator | None) -> Tensor:
    """Return embeddings `[B, D]` of one tower, float32, with the recipe's noise; no gradient where it is frozen."""
    encode = models.encode_text if tower == "text" else models.encode_image
    noise = recipe.text_noise if tower == "text" else recipe.image_noise
    # Threads share autocast's cache of weights. One that leaves autocast would empty another's, and change its bits.
    half = models.precision() == "bf16"
    mixed = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False)
    with mixed, torch.set_grad_enabled(torch.is_grad_enabled() and recipe.frozen != tower):
        e = encode(model, x).float()
    return noisy(e, noise, generator) if noise else e


def noisy(embedding: Tensor, length: float, generator: torch.Generator | None) -> Tensor:
    """Add Gaussian noise of the given expected length to unit vectors `[B, D]`, and return them at unit length again.

    The paper's noise has a standard deviation per coordinate; whether it is added before or after normalising is not
    known, and its strength depends on that. A length relative to the embedding means the same everywhere.
    """
    noise = torch.randn(embedding.shape, generator=generator).to(embedding.device)
    return F.normalize(embedding + length / embedding.shape[-1] ** 0.5 * noise, dim=-1)
