"""open_clip models from the JSON configs of `lib/models/`: built, run forward, and their inputs augmented.

The forward pass is open_clip's, without what the loss never reads: most of the padding and, in each tower's last block,
every position but the pooled one. That makes training fast; a test compares it with open_clip's. Augmentations are
drawn per image, not per batch, and on the CPU, so that a seed gives the same ones on every device."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

torch.backends.cudnn.allow_tf32 = False  # else the patches are computed in TF32, and scores are promised in fp32
OLDEST = (7, 5)  # compute capability of the oldest card that torch's wheels are built for
GROUPS = 4  # of captions of like length: fewer waste time on padding, more make the products small
# Images whose views are drawn from one generator. Part of what a score is, not a setting: another value draws others.
BLOCK = 500
VIEW_CROP, VIEW_JITTER, VIEW_GREY = 0.3, 0.4, 0.2  # of the other view: as SimCLR's, but milder
SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
_building = Lock()  # the initial weights come from torch's global generator, which threads share


@cache
def usable() -> list[str]:
    """Return the types of device that torch can use here, the fastest first; warn of a card that is too old for it."""
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST
    if old:
        warnings.warn(f"{torch.cuda.get_device_name()} is too old for this torch: the CPU is used", stacklevel=2)
    there = {"cuda": torch.cuda.is_available() and not old, "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, found in there.items() if found]


def device() -> torch.device:
    """Return the device: CLIPMEM_DEVICE (`./run_all.sh --device`), else the fastest. Raise ValueError for another."""
    asked = os.environ.get("CLIPMEM_DEVICE") or usable()[0]
    if asked not in usable():
        raise ValueError(f"CLIPMEM_DEVICE, or --device: torch can use {', '.join(usable())} here, not {asked!r}")
    return torch.device(asked)


def precision() -> str:
    """Return what the products of a training are computed in: "bf16" (autocast) or "fp32". CLIPMEM_PRECISION
    (`./run_all.sh --precision`) says which; else bf16 where it is faster (tests/benchmark.py): on a GPU that multiplies
    bf16 in hardware, and on a CPU with AMX. Scores are always computed in fp32."""
    asked, kind = os.environ.get("CLIPMEM_PRECISION"), device().type
    if asked not in (None, "", "fp32", "bf16"):
        raise ValueError(f"CLIPMEM_PRECISION: expected fp32 or bf16, got {asked!r}")
    multiplies = kind == "cpu" and torch.cpu._is_amx_tile_supported()  # with AVX512-BF16 alone, fp32 is faster on Intel
    multiplies |= kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 only pretends to
    return asked or ("bf16" if multiplies else "fp32")


def build(config: dict, pixels: int, vocabulary: int, context: int, seed: int, classes: int = 0, sigmoid=False) -> CLIP:
    """Return a freshly initialised CLIP; the same arguments give the same weights on every device. Sizes of `config`
    (`recipes.model_config`) are replaced: `pixels`, the side of the square images, `vocabulary`, the number of compact
    token ids, `context`, the longest caption in tokens. `classes` adds the table `model.classes` `[classes, D]`;
    `sigmoid` adds `logit_bias`, with SigLIP's first values (arXiv 2303.15343, section 3.2)."""
    vision = CLIPVisionCfg(**config["vision_cfg"] | {"image_size": pixels})
    text = CLIPTextCfg(**config["text_cfg"] | {"vocab_size": vocabulary, "context_length": context})
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(config["embed_dim"], vision, text, output_dict=True, **(SIGLIP if sigmoid else {}))
        if classes:
            model.classes = torch.nn.Parameter(torch.randn(classes, config["embed_dim"]))
    return model


# --- augmentation ---
@cache  # a copy of these at every step would wait for the device
def _channels(where: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(x).view(3, 1, 1).to(where) * 255 for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))


def normalise(images: Tensor) -> Tensor:
    """Return uint8 images `[N, 3, H, W]` as float32, scaled by CLIP's channel means and deviations."""
    mean, std = _channels(images.device)
    return (images.float() - mean) / std


def random_crops(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Return a random resized crop of each image, `[N, 3, H, W]` to the same shape, normalised for the model (real
    numbers are taken to be so already). The kept area is uniform in [smallest, 1], the aspect ratio log-uniform as far
    as the crop fits. Bilinear resampling, as two small matrix products per image, is the same on every device."""
    n = len(images)
    area = 1 - (1 - smallest) * torch.rand(n, generator=generator)
    ratio = area ** (2 * torch.rand(n, generator=generator) - 1)
    place = torch.rand(2, n, generator=generator)
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    x = normalise(images) if images.dtype == torch.uint8 else images
    drawn = torch.stack([height, place[0] * (1 - height), width, place[1] * (1 - width)]).to(x.device)  # a small copy
    down, across = resampling(drawn[0], drawn[1], x.shape[2]), resampling(drawn[2], drawn[3], x.shape[3])
    return down[:, None] @ x @ across[:, None].transpose(2, 3)


def resampling(share: Tensor, start: Tensor, size: int) -> Tensor:
    """Return bilinear weights `[N, size, size]` from source positions to those of a crop [start, start + share]."""
    places = torch.arange(size, device=share.device)
    position = ((start[:, None] + share[:, None] * ((places + 0.5) / size)) * size - 0.5).clamp(0, size - 1)
    return (1 - (position[:, :, None] - places).abs()).clamp(min=0)


def light_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each of uint8 `[N, 3, H, W]` to 90 % or more of its area: the augmentation of a score."""
    return random_crops(images, 0.9, generator)


def augment(images: Tensor, crop: float, jitter: float, generator: torch.Generator) -> Tensor:
    """Return normalised random crops of uint8 `[N, 3, H, W]` that keep at least `crop` of the area, with color jitter.
    It multiplies every channel by its own factor in [1 - jitter, 1 + jitter] and adds up to `jitter` to all three."""
    x = random_crops(images, crop, generator)
    if jitter:
        factors = 1 + jitter * (2 * torch.rand(len(x), 3, 1, 1, generator=generator) - 1)
        added = jitter * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)
        x = x * factors.to(x.device) + added.to(x.device)
    return x


def other_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return strongly augmented views of uint8 `[N, 3, H, W]`, normalised: self-supervised partners, also of SSLMem."""
    x = augment(images, VIEW_CROP, VIEW_JITTER, generator)
    mirrored, grey = (torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) for _ in range(2))
    x = torch.where(mirrored < 0.5, x.flip(3), x)
    return torch.where(grey < VIEW_GREY, x.mean(dim=1, keepdim=True).expand_as(x), x)


# --- the forward pass ---
def encode_image(model: CLIP, images: Tensor) -> Tensor:
    """Return unit-length embeddings `[N, D]` of normalised images `[N, 3, H, W]`."""
    x = _patches(model.visual, images)
    first = torch.zeros(len(x), dtype=torch.long, device=x.device)
    x = _tower(model.visual.transformer.resblocks, x, pooled=first, causal=False)
    return F.normalize(model.visual.ln_post(x) @ model.visual.proj, dim=-1)


def _patches(tower: Any, images: Tensor) -> Tensor:
    x = tower.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    return tower.ln_pre(x + tower.positional_embedding.to(x.dtype))


def image_layers(model: CLIP, images: Tensor) -> Iterator[Tensor]:
    """Yield the hidden activations `[N, U]` of each image block, after GELU, clamped at 0, averaged over positions."""
    x, hidden = _patches(model.visual, images), []
    for block in model.visual.transformer.resblocks:
        hook = block.mlp.gelu.register_forward_hook(lambda module, inputs, output: hidden.append(output))
        x = _block(block, x, causal=False)
        hook.remove()
        yield hidden.pop().clamp(min=0).mean(dim=1)


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Return unit-length embeddings `[N, D]` of compact tokens `[N, L]`, 0 = padding, L at most the context. Padding
    behind the end token changes nothing. On accelerators, and on CPUs with AMX, one shape is faster, and it stays; else
    the captions are worked on in GROUPS of like length, each cut to its longest."""
    if tokens.device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return _encode_text(model, tokens)
    lengths = (tokens > 0).sum(dim=1)
    order = lengths.argsort(stable=True)
    groups = [_encode_text(model, tokens[rows, : int(lengths[rows].max())]) for rows in order.chunk(GROUPS)]
    return torch.cat(groups)[order.argsort()]


def _encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    end = tokens.argmax(dim=1)  # the end token has the largest id
    x = _tower(model.transformer.resblocks, x, pooled=end, causal=True)
    return F.normalize(model.ln_final(x) @ model.text_projection, dim=-1)


def _tower(blocks: Any, x: Tensor, pooled: Tensor, causal: bool) -> Tensor:
    """Run all residual blocks, `[N, L, W]` to the pooled position `[N, W]`."""
    for block in blocks[:-1]:
        x = _block(block, x, causal)
    return _last_block(blocks[-1], x, pooled, causal)


def _block(block: Any, x: Tensor, causal: bool) -> Tensor:
    n, length, width = x.shape
    attn = block.attn
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.view(n, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).tril() if causal else None
    x = x + attn.out_proj(_attend(q, k, v, ahead).transpose(1, 2).reshape(n, length, width))
    return x + block.mlp(block.ln_2(x))


def _last_block(block: Any, x: Tensor, pooled: Tensor, causal: bool) -> Tensor:
    """Run the same block for one position of each row, `[N, L, W]` to `[N, W]`: nothing reads the others."""
    n, length, width = x.shape
    attn, every = block.attn, torch.arange(n, device=x.device)
    y = block.ln_1(x)
    q = F.linear(y[every, pooled], attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    kv = F.linear(y, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
    k, v = kv.view(n, length, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    seen = (torch.arange(length, device=x.device) <= pooled[:, None])[:, None, None] if causal else None
    mixed = _attend(q.view(n, 1, attn.num_heads, -1).transpose(1, 2), k, v, seen)
    x = x[every, pooled] + attn.out_proj(mixed.transpose(1, 2).reshape(n, width))
    return x + block.mlp(block.ln_2(x))


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Return the attention `[N, H, Q, D]` of queries `[N, H, Q, D]` to keys `[N, H, L, D]`; `seen`: bool, None for all.
    On the CPU in bf16 as two products and a softmax: there the backward pass of torch's own takes ten times as long."""
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if seen is not None:
        weights = weights.masked_fill(~seen, -torch.inf)
    return weights.softmax(dim=-1).to(v.dtype) @ v


# --- many images and captions ---
def blocks(model: CLIP, images: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """Yield the images `[N, 3, H, W]` of some rows in blocks on the model's device, each with its first place."""
    where = next(model.parameters()).device
    for start in range(0, len(rows), BLOCK):
        yield start, torch.from_numpy(images[rows[start : start + BLOCK]]).to(where)


@torch.no_grad()
def embed_images(model: CLIP, images: np.ndarray, rows: np.ndarray, views=0, augment: Callable = light_crop) -> Tensor:
    """Return unit-length embeddings `[A, R, D]`, on the CPU, of `views` augmented views of some rows of uint8 images
    `[N, 3, H, W]`, the same views for every model; with `views` 0 of the images as they are (A = 1)."""
    parts = []
    for start, part in blocks(model, images, rows):
        drawn = (augment(part, torch.Generator().manual_seed(start * 1009 + view)) for view in range(views))
        parts.append(torch.stack([encode_image(model, x).cpu() for x in (drawn if views else [normalise(part)])]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def embed_texts(model: CLIP, tokens: np.ndarray) -> Tensor:
    """Return unit-length embeddings `[N, D]`, on the CPU, of tokens `[N, L]`."""
    whole = torch.from_numpy(tokens).long().to(next(model.parameters()).device)
    return torch.cat([encode_text(model, part).cpu() for part in whole.split(BLOCK)])
