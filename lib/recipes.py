"""What to train, as frozen dataclasses: data, model, schedule and seed; the scales; what each notebook compares.

A recipe says everything that changes a number and nothing else: device, paths and worker counts stay out of it.
Standard library only, so that run_all.sh can check its options before anything is installed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 4  # raise it when a change of code changes numbers: every older run is then trained again
SUBSETS = ("shared", "candidate", "independent", "external", "test")
PRESETS = {"flickr8k": "jxie/flickr8k"}  # short names of data sets on the Hugging Face Hub
MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Data:
    """Which pairs, at which size, how split and how corrupted."""

    dataset: str = "scenes"  # "scenes", a preset, a name on the Hub, or the path of a parquet file or image folder
    pixels: int = 32
    shared: int = 1400
    candidate: int = 600
    independent: int = 600
    external: int = 600  # scored, and the held-out pairs of the alignment
    test: int = 1000  # for utility only, which is so measured on pairs that no other step has seen
    swapped: float = 0.2  # share of the candidate and of the independent pairs that get another pair's captions
    partly_swapped: float = 0.2  # share of both in which a part of the words is replaced, see captions.SHARES
    inverted: float = 0.1  # share of both whose picture becomes its negative: atypical on purpose
    context: int = 24  # longest caption in tokens, start and end token included
    seed: int = 0  # of the split and the corruption, the same for every training seed
    image_column: str = ""  # "": found automatically
    caption_columns: tuple[str, ...] = ()  # (): found automatically

    def sizes(self) -> dict[str, int]:
        """Return the number of pairs in each of the five subsets."""
        return {name: getattr(self, name) for name in SUBSETS}


@dataclass(frozen=True)
class Recipe:
    """One model, trained on the subsets `trained_on` of `data`. Optimiser constants are OpenCLIP's defaults."""

    data: Data = field(default_factory=Data)
    trained_on: tuple[str, ...] = ("shared", "candidate")  # model f; g is trained on shared + independent
    model: str = "laptop"  # a file of lib/models
    epochs: int = 24
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.2
    crop: float = 0.9  # smallest share of the area that a random crop keeps
    evaluations: int = 6  # number of evaluations during training; if more than one, each records utility and UnitMem
    seed: int = 0  # of the initial weights, the batch order and the augmentation
    objective: str = "caption"  # what an image is trained to agree with: "caption" (CLIP), class "label", other "view"
    # mitigations and interventions
    n_captions: int = 1  # the first captions of each picture, of which one is drawn at every step
    word_dropout: float = 0.0  # share of a caption's tokens left out at each step
    colour: float = 0.0  # strength of random brightness and colour casts
    text_noise: float = 0.0  # standard deviation of the Gaussian noise on each coordinate of the text embedding
    image_noise: float = 0.0  # the same for the image embedding
    noise_at: str = "after"  # add the noise before or after the embedding is normalised to unit length
    image_width: float = 1.0  # width of the image tower, as a multiple of the config's
    text_width: float = 1.0
    frozen: str = ""  # "image" or "text": this tower is taken from g of the same seed and not trained
    remove: int = 0  # this many candidates are left out of the training,
    remove_by: str = ""  # ranked by "clipmem", "similarity" or "loss" (of f and g without removal), or "random"


@dataclass(frozen=True)
class Scale:
    """A size of experiment: the recipe for scenes, the recipe for photographs, and how finely they are scored."""

    scenes: Recipe
    photos: Recipe
    augmentations: int = 10  # views per image in a score (the paper's number is not known to us)


_SMOKE = Recipe(Data("scenes", 32, 160, 80, 80, 80, 100), model="smoke", epochs=5, batch=60, evaluations=3)
_LAPTOP = Recipe(Data("scenes", 32, 1400, 600, 600, 600, 1000), model="scenes", epochs=15, evaluations=5)
# 12 epochs, because retrieval on unseen photographs has flattened by epoch 8: what follows is memorization alone
_PHOTOS = Recipe(Data("", 48, 3000, 800, 800, 800, 1000), epochs=12, evaluations=3)
_GPU = Recipe(Data("scenes", 64, 9000, 1000, 1000, 1000, 2000, context=32), model="gpu", epochs=40, batch=256, lr=5e-4)
_PAPER = Recipe(Data("scenes", 224, 65000, 5000, 5000, 5000, 5000, context=77), model="paper", epochs=100, lr=5e-4)
SCALES = {
    "smoke": Scale(_SMOKE, _SMOKE, augmentations=2),
    "laptop": Scale(_LAPTOP, _PHOTOS, augmentations=5),
    "gpu": Scale(_GPU, replace(_GPU, data=Data("", 72, 4000, 1000, 1000, 1000, 1000, context=32))),
    "paper": Scale(_PAPER, _PAPER),
}


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the name most like `word`, or "" where none is alike."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.7)
    return f" Did you mean {near[0]!r}?" if near else ""


def at_scale(scale: str, dataset: str) -> Recipe:
    """Return the recipe of model f, seed 0, for a data set at a scale. Raise ValueError for an unknown scale."""
    if scale not in SCALES:
        hint = did_you_mean(str(scale), SCALES)
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}.{hint}")
    recipe = SCALES[scale].scenes if dataset == "scenes" else SCALES[scale].photos
    return replace(recipe, data=replace(recipe.data, dataset=dataset))


def published_name(dataset: str) -> str:
    """Return the short name of a data set: of a path its stem, of a name on the Hub its last part."""
    name = dataset.rstrip("/").split("/")[-1].removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "data"


def slug(dataset: str) -> str:
    """Return a name for folders that no other data set has: unless built in, with six hex digits of the whole path."""
    if dataset == "scenes" or dataset in PRESETS:
        return dataset
    path = os.path.expanduser(dataset)
    whole = os.path.realpath(path) if os.path.exists(path) else dataset
    return f"{published_name(dataset)}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def model_config(name: str) -> dict[str, Any]:
    """Return the open_clip config `lib/models/<name>.json`. Raise ValueError, with the names there are, without one."""
    names = sorted(path.stem for path in MODELS.glob("*.json"))
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"model: expected one of {', '.join(names)} (files of {MODELS}), got {name!r}.{hint}")
    return json.loads((MODELS / f"{name}.json").read_text())


def key(recipe: Recipe, fingerprint: str, precision: str) -> str:
    """Return the name of a run in the store: 16 hex digits of everything that changes its numbers.

    That is the recipe, the content of its model's JSON, the data's fingerprint, VERSION, and the precision of the
    products ("fp32" or "bf16"). Where the data lie is left out: the fingerprint says what they hold.
    """
    content = asdict(recipe)
    for where in ("dataset", "image_column", "caption_columns"):
        del content["data"][where]
    text = json.dumps([VERSION, fingerprint, precision, model_config(recipe.model), content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def f_and_g(base: Recipe, seed: int) -> tuple[Recipe, Recipe]:
    """Return the two models of CLIPMem for one seed: equal initial weights, equal shared pairs at equal steps.

    Where candidates are removed, g is the same as without removal: it never saw them.
    """
    f = replace(base, seed=seed, trained_on=("shared", "candidate"))
    return f, replace(f, trained_on=("shared", "independent"), remove=0, remove_by="")


def needed_before(recipe: Recipe) -> list[Recipe]:
    """Return the runs that a recipe starts from: g, whose tower is frozen; f and g, which say what to remove."""
    f, g = f_and_g(replace(recipe, frozen="", remove=0, remove_by=""), recipe.seed)
    return [f, g] if recipe.remove and recipe.remove_by != "random" else [g] if recipe.frozen else []


def noise_floor_model(base: Recipe, seeds: Sequence[int]) -> Recipe:
    """Return the model that f is compared with where nothing is to be found: one more f, with a seed of its own.

    Comparing the trained seeds with one another would be free, but cyclic differences average to zero by construction.
    """
    return replace(base, seed=max(seeds) + 1)


def all_models(conditions: Mapping[str, Recipe], seeds: Sequence[int]) -> list[Recipe]:
    """Return f and g of every condition and seed, and the noise-floor model of the first condition; each model once."""
    every = [recipe for base in conditions.values() for seed in seeds for recipe in f_and_g(base, seed)]
    return list(dict.fromkeys([*every, noise_floor_model(next(iter(conditions.values())), seeds)]))


# --- what each notebook compares: name of the condition -> recipe of f, seed 0 ---

# Standard deviations of the noise on the text embedding, from the paper's grid (its Figure 5b). After normalisation to
# unit length, .3 per coordinate would be three times the embedding itself.
SIGMAS = (("after", 0.05), ("after", 0.15), ("before", 0.15), ("before", 0.3))
REMOVED = {0.05: ("clipmem", "similarity", "loss", "random"), 0.2: ("clipmem", "random")}  # share -> rules
# On photographs, which train more slowly, only the conditions of notebook 04 that its claims need are run
ON_PHOTOS = ["CLIP", "5 captions", "noise after 0.05", "noise before 0.15"]
ON_PHOTOS += [f"5% removed by {rule}" for rule in ("clipmem", "similarity", "random")]


def paradigms(base: Recipe) -> dict[str, Recipe]:
    """Notebook 01: the partner of the image changes, and nothing else."""
    return {"caption": base, "label": replace(base, objective="label"), "view": replace(base, objective="view")}


def attribution(base: Recipe) -> dict[str, Recipe]:
    """Notebook 03: each intervention on one encoder has its twin on the other."""
    once = replace(base, evaluations=1)
    return {
        "CLIP": base,
        "image retrained": replace(base, frozen="text"),
        "text retrained": replace(base, frozen="image"),
        "image augmented": replace(once, crop=0.5, colour=0.2),
        "image augmented more": replace(once, crop=0.25, colour=0.4),
        "words dropped": replace(once, word_dropout=0.3),
        "other captions": replace(once, n_captions=5),
        "image noise": replace(once, image_noise=0.15),
        "text noise": replace(once, text_noise=0.15),
        "narrow image tower": replace(once, image_width=0.5),
        "narrow text tower": replace(once, text_width=0.5),
    }


def mitigations(base: Recipe) -> dict[str, Recipe]:
    """Notebook 04: more captions, noise on text embeddings, image augmentation, removal, and three of them together."""
    once = replace(base, evaluations=1)
    found = {"CLIP": base} | {f"{n} captions": replace(once, n_captions=n) for n in (2, 3, 4, 5)}
    found |= {f"noise {at} {sigma}": replace(once, text_noise=sigma, noise_at=at) for at, sigma in SIGMAS}
    found["image augmented"] = replace(once, crop=0.5, colour=0.2)
    for share, rules in REMOVED.items():
        count = round(share * base.data.candidate)
        found |= {f"{share:.0%} removed by {rule}": replace(base, remove=count, remove_by=rule) for rule in rules}
    found["combined"] = replace(once, n_captions=5, text_noise=0.15, noise_at="before", crop=0.5, colour=0.2)
    return found if base.data.dataset == "scenes" else {name: found[name] for name in ON_PHOTOS}


CONDITIONS = {
    "01_supervised_vs_ssl": paradigms,
    "02_miscaptioned_memorization": lambda base: {"CLIP": base},
    "03_encoder_attribution": attribution,
    "04_mitigation_utility": mitigations,
}
