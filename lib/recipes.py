"""What to train, as frozen dataclasses: data, model, schedule and seed; the scales; the key of a run.

A recipe says everything that changes a number and nothing else: device, paths and worker counts stay out of it.
Standard library only, so that run_all.sh can check its options before anything is installed.
"""

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 6  # raise it when a change of code changes numbers: every older run is then trained again
# Fields of Recipe that came later, and what turns them off
LATER = {"finetuned": 0, "regrouped": 0.0, "width": 1.0, "depth": 1.0}
SUBSETS = ("shared", "pool", "external", "test", "probe")
CORRUPTED = ("pool", "external")  # those with corrupted pairs, which are scored; notebook 02 adds the shared pairs
# Short names of data sets on the Hugging Face Hub. COCO's training pictures have five captions, those of CC3M have one.
PRESETS = {"flickr8k": "jxie/flickr8k", "coco": "Multimodal-Fatima/COCO_captions_train", "cc3m": "pixparse/cc3m-wds"}
MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Data:
    """Which pairs, at which size, how split and how corrupted."""

    dataset: str = "scenes"  # "scenes", a preset, a name on the Hub, or the path of a parquet file or folder
    pixels: int = 32
    shared: int = 1400
    pool: int = 1200  # for every seed, f trains on a random half of these (its candidates), g on the other half
    external: int = 600  # no model trains on them: the noise floor; the clean ones are held out by the alignment
    test: int = 10_000  # for utility only, which is so measured on pairs that no other step has seen
    probe: int = 5_000  # linear probes of the data set's own classes are fitted on these
    swapped: float = 0.2  # share of the pool and of the external pairs that get another pair's captions
    partly_swapped: float = 0.2  # share of both in which a part of the words is replaced, see captions.SHARES
    inverted: float = 0.1  # share of both whose picture becomes its negative: atypical on purpose
    context: int = 24  # longest caption in tokens, start and end token included
    seed: int = 0  # of the subsets and the corruption, the same for every training seed
    image_column: str = ""  # "": found automatically
    caption_columns: tuple[str, ...] = ()  # (): found automatically

    def sizes(self) -> dict[str, int]:
        """Return the number of pairs in each of the five subsets."""
        return {name: getattr(self, name) for name in SUBSETS}


@dataclass(frozen=True)
class Recipe:
    """One model, trained on the subsets `trained_on` of `data`. Optimiser constants are OpenCLIP's defaults."""

    data: Data = field(default_factory=Data)
    trained_on: tuple[str, ...] = ("shared", "candidate")  # model f; g: shared + independent, the other half
    model: str = "laptop"  # a file of lib/models
    epochs: int = 24
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.2
    crop: float = 0.9  # smallest share of the area that a random crop keeps
    evaluations: int = 6  # number of evaluations during training; if more than one, each records utility and UnitMem
    seed: int = 0  # of the halves of the pool, the initial weights, the batch order and the augmentation
    objective: str = "caption"  # what an image agrees with: "caption" (by SigLIP's loss "sigmoid"), "label", or "view"
    # mitigations and interventions
    n_captions: int = 1  # the first captions of each picture, of which one is drawn at every step
    word_dropout: float = 0.0  # share of a caption's tokens left out at each step
    colour: float = 0.0  # strength of random brightness and colour casts
    text_noise: float = 0.0  # length of the Gaussian noise on the text embedding, as a multiple of the embedding's
    image_noise: float = 0.0  # the same for the image embedding
    frozen: str = ""  # "image" or "text": this tower is taken from a model trained on the shared pairs, and not trained
    remove: float = 0.0  # this share of the training pairs is left out,
    remove_by: str = ""  # ranked by one of conditions.REMOVAL_RULES
    finetuned: int = 0  # trained without removal first, then for so many epochs more without the removed pairs
    regrouped: float = 0.0  # this share, ranked by remove_by, fills batches of its own; they alone have the mitigations
    width: float = 1.0  # of both towers, as a multiple of the model's
    depth: float = 1.0  # the same for the number of layers

    @property
    def reads_captions(self) -> bool:
        """Whether the image's partner is a caption, and so there is a text tower to score."""
        return self.objective in ("caption", "sigmoid")


@dataclass(frozen=True)
class Scale:
    """A size of experiment: the recipe for scenes, the recipe for photographs, and how finely they are scored."""

    scenes: Recipe
    photos: Recipe
    augmentations: int = 10  # views per image in a score (the paper's number is not known to us)


_SMOKE = Recipe(Data("scenes", 32, 160, 160, 80, 200, 100), model="smoke", epochs=5, batch=60, evaluations=3)
_LAPTOP = Recipe(Data("scenes", 32), model="scenes", epochs=15, evaluations=5)
# 12 epochs, because retrieval on unseen photographs has flattened by epoch 8: what follows is memorization alone
_PHOTOS = Recipe(Data("", 48, 3000, 1600, 800, 2600, 0), epochs=12, evaluations=4)
# Few pictures, seen often: only so do a supervised and a self-supervised model memorize enough to be compared by pair
_DEEP_DATA = Data("scenes", 32, 200, 400, 400, 5000, 5000, swapped=0.25, partly_swapped=0.1, inverted=0.25)
_DEEP = Recipe(_DEEP_DATA, model="scenes", epochs=150, batch=100, evaluations=5)
_GPU = Recipe(Data("scenes", 64, 9000, 2000, 1000, context=32), model="gpu", epochs=40, batch=256, lr=5e-4)
_PAPER = Recipe(Data("scenes", 224, 65000, 10000, 5000, context=77), model="paper", epochs=100, lr=5e-4)
_PAPER16 = replace(_PAPER, model="paper16")  # ViT-B/16: the paper does not say which patches it has
SCALES = {
    "smoke": Scale(_SMOKE, _SMOKE, augmentations=2),
    "laptop": Scale(_LAPTOP, _PHOTOS, augmentations=5),
    "deep": Scale(_DEEP, _DEEP, augmentations=20),
    "gpu": Scale(_GPU, replace(_GPU, data=Data("", 72, 4000, 2000, 1000, 1000, 0, context=32))),
    "paper": Scale(_PAPER, _PAPER),
    "paper16": Scale(_PAPER16, _PAPER16),
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


def model_config(name: str, width: float = 1.0, depth: float = 1.0) -> dict[str, Any]:
    """Return the open_clip config `lib/models/<name>.json`, its towers `width` times as wide, with as many heads, and
    `depth` times as deep. Raise ValueError, with the names there are, without one."""
    names = sorted(path.stem for path in MODELS.glob("*.json"))
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"model: expected one of {', '.join(names)} (files of {MODELS}), got {name!r}.{hint}")
    config = json.loads((MODELS / f"{name}.json").read_text())
    for tower, size in (("vision_cfg", "width"), ("vision_cfg", "head_width"), ("text_cfg", "width")):
        config[tower][size] = round(config[tower][size] * width)
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = math.ceil(config[tower]["layers"] * depth)
    return config


def key(recipe: Recipe, fingerprint: str, precision: str) -> str:
    """Return the name of a run in the store: 16 hex digits of everything that changes its numbers.

    That is the recipe, the content of its model's JSON, the data's fingerprint, VERSION, and the precision of the
    products ("fp32" or "bf16"). Where the data lie is left out: the fingerprint says what they hold. So is what came
    later to the recipe and is not used: the keys of older runs stay.
    """
    content = {name: value for name, value in asdict(recipe).items() if LATER.get(name) != value}
    for where in ("dataset", "image_column", "caption_columns"):
        del content["data"][where]
    text = json.dumps([VERSION, fingerprint, precision, model_config(recipe.model), content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def f_and_g(base: Recipe, seed: int) -> tuple[Recipe, Recipe]:
    """Return the two models of CLIPMem for one seed: equal initial weights, equal shared pairs at equal steps, and
    complementary halves of the pool."""
    f = replace(base, seed=seed, trained_on=("shared", "candidate"))
    return f, replace(f, trained_on=("shared", "independent"))


def needed_before(recipe: Recipe) -> list[Recipe]:
    """Return the runs that a recipe starts from.

    For a frozen tower its donor, which saw neither half of the pool. For a fine-tuning the model that it starts from.
    For a ranking by scores, f and g of another seed: so each pair is ranked by models whose halves do not depend on who
    is trained afterwards.
    """
    if recipe.frozen:
        return [replace(recipe, frozen="", trained_on=("shared",), evaluations=1)]
    whole, before = replace(recipe, remove=0.0, remove_by="", finetuned=0, regrouped=0.0), list[Recipe]()
    if recipe.finetuned:
        before.append(whole)
    elif recipe.remove:
        whole = replace(whole, epochs=round(recipe.epochs * (1 - recipe.remove)))
    elif recipe.regrouped:
        whole = replace(whole, n_captions=1, text_noise=0.0)
    if recipe.remove_by not in ("", "random", "oracle"):
        before += f_and_g(whole, recipe.seed - 1 if recipe.seed else 1)
    return before


def all_models(conditions: Mapping[str, Recipe], seeds: Sequence[int]) -> list[Recipe]:
    """Return f and g of every condition and seed, f alone where a model is trained without the removed pairs, and what
    these start from; each model once."""
    found: list[Recipe] = []
    for base in conditions.values():
        for seed in seeds:
            wanted = f_and_g(base, seed)[: 1 if base.remove and not base.finetuned else 2]
            found += [before for recipe in wanted for before in needed_before(recipe)] + list(wanted)
    return list(dict.fromkeys(found))
