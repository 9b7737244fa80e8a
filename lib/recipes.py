"""What to train, as frozen dataclasses: data, split, model, schedule and seed; the scales; and the key of a run.

A recipe says everything that changes a number and nothing else: device, paths and worker counts stay out of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 3  # raised by hand when a change of code changes numbers: every older run is then trained again

SUBSETS = ("shared", "candidate", "independent", "external", "disjoint")


@dataclass(frozen=True)
class Data:
    """Which pairs, at which size, split and corrupted how.

    `external` pairs are scored and also serve as the held-out pairs of the alignment; `disjoint` pairs are used by
    nothing but retrieval, so utility is measured on pairs that no other step has seen.
    """

    dataset: str = "scenes"  # "scenes", a preset, a hub name, or a path to a parquet file or an imagefolder
    pixels: int = 32
    shared: int = 1400
    candidate: int = 600
    independent: int = 600
    external: int = 600
    disjoint: int = 1000
    wrong: float = 0.2  # share of the candidates, and of the independent pairs, that get another pair's captions
    dosed: float = 0.2  # share of both with a part of their words replaced: .25, .5, .75 in equal thirds
    odd: float = 0.1  # share of both whose picture becomes its negative: atypical on purpose
    context: int = 24  # longest caption in tokens, start and end token included
    seed: int = 0  # of the split and of the corruption, the same for every training seed
    image_column: str = ""  # "" finds it
    caption_columns: tuple[str, ...] = ()  # () finds them

    def sizes(self) -> dict[str, int]:
        """Number of pairs in each of the five subsets."""
        return {name: getattr(self, name) for name in SUBSETS}


@dataclass(frozen=True)
class Recipe:
    """One model: trained on `trained_on` of `data`. Optimiser constants are OpenCLIP's defaults.

    `objective` says what an image is trained to agree with: its `caption` (CLIP), its class `label` (supervised) or
    another `view` of itself (self-supervised). All that stands below it is a mitigation or an intervention.
    """

    data: Data = field(default_factory=Data)
    trained_on: tuple[str, ...] = ("shared", "candidate")  # f; g is trained on shared + independent
    model: str = "laptop"  # a file of lib/models
    epochs: int = 24
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.2
    crop: float = 0.9  # smallest area that a random crop keeps
    looks: int = 6  # how many times along training scores are recorded; with several, utility and UnitMem too
    seed: int = 0  # of the initial weights, the batch order and the augmentation
    objective: str = "caption"
    captions: int = 1  # the first so many captions of a picture take turns
    word_dropout: float = 0.0  # share of a caption's tokens left out at each step
    colour: float = 0.0  # strength of random brightness and colour casts
    text_noise: float = 0.0  # standard deviation of Gaussian noise on each coordinate of the text embedding
    image_noise: float = 0.0  # the same on the image embedding
    noise_at: str = "after"  # the noise is added before or after the embedding is brought to unit length
    image_width: float = 1.0  # width of the image tower, times the config's
    text_width: float = 1.0
    frozen: str = ""  # "image" or "text": this tower is taken from g of the same seed, and is not trained
    remove: int = 0  # so many candidates are left out of the training,
    remove_by: str = ""  # the first by "clipmem", "similarity", "loss" (of f and g without the removal) or "random"


def f_and_g(base: Recipe, seed: int) -> tuple[Recipe, Recipe]:
    """The two models of CLIPMem for one seed; they start from the same weights and see S_S at the same steps.

    Where candidates are removed, g is the same as without: it never saw them.
    """
    f = replace(base, seed=seed, trained_on=("shared", "candidate"))
    return f, replace(f, trained_on=("shared", "independent"), remove=0, remove_by="")


def needed_before(recipe: Recipe) -> list[Recipe]:
    """The runs whose results a recipe starts from: g, of which a tower is frozen; f and g, which say what to remove."""
    whole = replace(recipe, frozen="", remove=0, remove_by="")
    f, g = f_and_g(whole, recipe.seed)
    return [g] if recipe.frozen else [f, g] if recipe.remove and recipe.remove_by != "random" else []


@dataclass(frozen=True)
class Scale:
    """A size of experiment: the recipe on scenes, the recipe on photographs, and how it is scored."""

    scenes: Recipe
    photos: Recipe
    augmentations: int = 10  # views per image in a score (the paper's number is not known to us)


_SMOKE = Recipe(Data("scenes", 32, 160, 80, 80, 80, 100), model="smoke", epochs=5, batch=60, looks=3)
_LAPTOP = Recipe(Data("scenes", 32, 1400, 600, 600, 600, 1000), model="scenes", epochs=15, looks=5)
# 12 epochs, because retrieval on unseen photographs has flattened by epoch 8: what follows is memorization alone
_PHOTOS = Recipe(Data("", 48, 3000, 800, 800, 800, 1000), epochs=12, looks=3)
_GPU = Recipe(Data("scenes", 64, 9000, 1000, 1000, 1000, 2000, context=32), model="gpu", epochs=40, batch=256, lr=5e-4)
_PAPER = Recipe(
    Data("scenes", 224, 65000, 5000, 5000, 5000, 5000, context=77), model="paper", epochs=100, batch=128, lr=5e-4
)

SCALES = {
    "smoke": Scale(_SMOKE, _SMOKE, augmentations=2),
    "laptop": Scale(_LAPTOP, _PHOTOS, augmentations=5),
    "gpu": Scale(_GPU, replace(_GPU, data=Data("", 72, 4000, 1000, 1000, 1000, 1000, context=32))),
    "paper": Scale(_PAPER, _PAPER),
}


def at_scale(scale: str, dataset: str) -> Recipe:
    """The recipe of model f, seed 0, for a data set at a scale.

    Raises:
        ValueError: the scale is not one of SCALES.
    """
    if scale not in SCALES:
        near = difflib.get_close_matches(scale, SCALES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}.{hint}")
    recipe = SCALES[scale].scenes if dataset == "scenes" else SCALES[scale].photos
    return replace(recipe, data=replace(recipe.data, dataset=dataset))


def slug(dataset: str) -> str:
    """Short name of a data set for folders and tables: a path's stem, a hub name's last part."""
    return Path(dataset.rstrip("/")).stem or dataset


def described(recipe: Any) -> dict[str, Any]:
    """A recipe as JSON-ready values, without what equals its default: a field that is added later moves no key."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = described(value)
        elif value != f.default:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def key(recipe: Recipe, fingerprint: str) -> str:
    """Name of a run in the store: 16 hex digits of recipe + content of the data + VERSION.

    Where the data lie (`dataset`, column names) is left out: the fingerprint stands for what they hold.
    """
    content = described(recipe)
    for where in ("dataset", "image_column", "caption_columns"):
        content["data"].pop(where, None)
    text = json.dumps([VERSION, fingerprint, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
