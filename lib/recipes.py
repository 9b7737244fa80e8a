"""What to train, as frozen dataclasses: data, model, schedule and seed; the scales; the key of a run.

A recipe says everything that changes a number and nothing else: device, paths and worker counts stay out of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 9  # raise it when a change of code changes numbers: every older run is then trained again
SUBSETS = ("shared", "pool", "external", "test", "probe")
CORRUPTED = ("pool", "external")  # those with corrupted pairs, which are scored; notebook 02 adds the shared pairs
OBJECTIVES = ("CLIP", "supervised", "self-supervised")  # an image agrees with its caption, class or another view
HALVES = ("candidate", "independent")  # of the pool: f trains on the first one, g on the second one
MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class DataConfig:
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
    tenth: int = -1  # from 0 on: the external pairs are this tenth of all, of one order for all seeds
    context: int = 24  # longest caption in tokens, start and end token included
    seed: int = 0  # of the subsets and the corruption, the same for every training seed
    image_column: str = ""  # "": found automatically
    caption_columns: tuple[str, ...] = ()  # (): found automatically

    @property
    def file(self) -> str:
        """Return the name of the file among published scores that holds the truth about these pairs."""
        return f"data-{self.shared}-{self.pool}-{self.swapped:g}.parquet"

    def sizes(self) -> dict[str, int]:
        """Return the number of pairs in each of the five subsets."""
        return {name: getattr(self, name) for name in SUBSETS}


@dataclass(frozen=True)
class Recipe:
    """One model, trained on the subsets `trained_on` of `data`. Optimiser constants are OpenCLIP's defaults."""

    data: DataConfig = field(default_factory=DataConfig)
    trained_on: tuple[str, ...] = ("shared", "candidate")  # model f; g: shared + independent, the other half
    model: str = "laptop"  # a file of lib/models
    epochs: int = 24
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.2
    crop: float = 0.9  # smallest share of the area that a random crop keeps
    evaluations: int = 6  # during training; if more than one, each records utility and UnitMem; 0: f alone, for utility
    seed: int = 0  # of the halves of the pool, the initial weights, the batch order and the augmentation
    objective: str = "CLIP"  # one of OBJECTIVES, or "SigLIP", which has CLIP's partner and another loss
    # mitigations and interventions
    n_captions: int = 1  # the first captions of each picture, of which one is drawn at every step
    token_dropout: float = 0.0  # share of a caption's tokens that is left out at each step
    color_jitter: float = 0.0  # strength of random changes of brightness and colour
    text_noise: float = 0.0  # length of the Gaussian noise on the text embedding, as a multiple of the embedding's
    image_noise: float = 0.0  # the same for the image embedding
    frozen: str = ""  # "image" or "text": this tower is taken from a model trained on the shared pairs, and not trained
    remove: float = 0.0  # this share of the training pairs is left out,
    remove_by: str = ""  # ranked by one of REMOVAL_RULES
    width: float = 1.0  # of both towers, as a multiple of the model's

    @property
    def reads_captions(self) -> bool:
        """Return whether the image's partner is a caption, so that there is a text tower to score."""
        return self.objective in ("CLIP", "SigLIP")


@dataclass(frozen=True)
class Scale:
    """A size of experiment: the recipe for scenes, the recipe for photographs, and how finely they are scored."""

    scenes: Recipe
    photos: Recipe
    augmentations: int = 10  # views per image in a score (the paper's number is not known to us)


_SMOKE = Recipe(DataConfig("scenes", 32, 160, 160, 80, 200, 100), model="smoke", epochs=5, batch=60, evaluations=3)
_LAPTOP = Recipe(DataConfig("scenes", 32), model="scenes", epochs=15, evaluations=5)
# Retrieval on unseen photographs is flat from epoch 3 on: what follows is memorization, so notebook 02 shows both ends
_PHOTOS = Recipe(DataConfig("", 48, 3000, 1600, 800, 2600, 0), epochs=12, evaluations=4)
# Few pictures, seen often: only so do a supervised and a self-supervised model memorize enough to be compared by pair
_DEEP_DATA = DataConfig("scenes", 32, 200, 400, 400, 5000, 5000, swapped=0.25, partly_swapped=0.1, inverted=0.25)
_DEEP = Recipe(_DEEP_DATA, model="scenes", epochs=150, batch=100, evaluations=5)
_GPU = Recipe(DataConfig("scenes", 64, 9000, 2000, 1000, context=32), model="gpu", epochs=40, batch=256, lr=5e-4)
_PAPER = Recipe(DataConfig("scenes", 224, 65000, 10000, 5000, context=77), model="paper", epochs=100, lr=5e-4)
_PAPER16 = replace(_PAPER, model="paper16")  # ViT-B/16: the paper does not say which patches it has
SCALES = {
    "smoke": Scale(_SMOKE, _SMOKE, augmentations=2),
    "laptop": Scale(_LAPTOP, _PHOTOS, augmentations=5),
    "deep": Scale(_DEEP, _DEEP, augmentations=20),
    "gpu": Scale(_GPU, replace(_GPU, data=DataConfig("", 72, 4000, 2000, 1000, 1000, 0, context=32))),
    "paper": Scale(_PAPER, _PAPER),
    "paper16": Scale(_PAPER16, _PAPER16),
}


def at_scale(scale: str, dataset: str) -> Recipe:
    """Return the recipe of model f, seed 0, for a data set at a scale. Raise ValueError for an unknown scale."""
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    recipe = SCALES[scale].scenes if dataset == "scenes" else SCALES[scale].photos
    return replace(recipe, data=replace(recipe.data, dataset=dataset))


def model_config(name: str, width: float = 1.0) -> dict[str, Any]:
    """Return the open_clip config `lib/models/<name>.json`, its towers `width` times as wide, with as many heads."""
    config = json.loads((MODELS / f"{name}.json").read_text())
    for tower, size in (("vision_cfg", "width"), ("vision_cfg", "head_width"), ("text_cfg", "width")):
        config[tower][size] = round(config[tower][size] * width)
    return config


def key(recipe: Recipe, fingerprint: str, computed: str) -> str:
    """Return the name of a run in the store: 16 hex digits of everything that changes its numbers: the recipe (without
    the place of its data), its model's JSON, the data's fingerprint, VERSION, and `computed`: precision and device."""
    content = asdict(recipe)
    for where in ("dataset", "image_column", "caption_columns"):
        del content["data"][where]
    text = json.dumps([VERSION, fingerprint, computed, model_config(recipe.model), content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def f_and_g(base: Recipe, seed: int) -> tuple[Recipe, Recipe]:
    """Return the two models of a seed: equal initial weights, equal shared pairs, complementary halves of the pool."""
    f, g = (replace(base, seed=seed, trained_on=("shared", half)) for half in HALVES)
    return f, g


def depends_on(recipe: Recipe) -> list[Recipe]:
    """Return the runs that a recipe starts from: for a frozen tower its donor, which saw neither half of the pool; for
    a removal by scores, f and g of another seed, which draws other halves."""
    if recipe.frozen:
        return [replace(recipe, frozen="", trained_on=("shared",), evaluations=1)]
    if recipe.remove_by not in ("", "random", "oracle"):
        whole = replace(recipe, remove=0.0, remove_by="", epochs=round(recipe.epochs * (1 - recipe.remove)))
        return list(f_and_g(whole, recipe.seed - 1 if recipe.seed else 1))
    return []


def all_models(conditions: Mapping[str, Recipe], seeds: Sequence[int]) -> list[Recipe]:
    """Return f and g (f alone where pairs are removed or nothing is evaluated) of all conditions, and their donors."""
    alone = {name for name, base in conditions.items() if base.remove or not base.evaluations}
    pairs = [f_and_g(base, seed)[: 1 if name in alone else 2] for name, base in conditions.items() for seed in seeds]
    return list(dict.fromkeys(other for pair in pairs for one in pair for other in (*depends_on(one), one)))


class Study(NamedTuple):
    """What a notebook compares. `conditions`: name -> f with seed 0 (some have other data), the plain one first."""

    conditions: dict[str, Recipe]
    seeds: tuple[int, ...]
    augmentations: int  # views per image in a score

    @property
    def plain(self) -> str:
        """Return the name of the plain condition."""
        return next(iter(self.conditions))


# --- what each notebook compares: the name of a condition -> the recipe of f, seed 0 ---
REMOVAL_RULES: tuple[str, ...] = ("clipmem", "held-out similarity", "early loss", "random", "oracle")
MOST = 100_000  # pairs of a condition: at scale paper, a single pass would ask for seven million scenes
WRONG = 0.4  # share of wrong captions in the data of the removal study: with few there is little to gain
NOISE = (0.2, 0.5)  # lengths of the noise relative to the embedding: a turn by 11 and 27 degrees


def _with_removal(base: Recipe, share: float, rule: str) -> Recipe:
    """Return a recipe that removes a share of the pairs and takes as many steps as `base`."""
    return replace(base, remove=share, remove_by=rule, epochs=round(base.epochs / (1 - share)))


def disturbed(base: Recipe) -> dict[str, Recipe]:
    """Notebooks 03 and 04: a disturbance of images and one of texts; notebook 03 measures how far each moves them."""
    once = replace(base, evaluations=1)
    found = {"image augmented": replace(once, crop=0.5, color_jitter=0.2)}
    return found | {"tokens dropped": replace(once, token_dropout=0.1)}


def attribution(base: Recipe) -> dict[str, Recipe]:
    """Notebook 03: each intervention on one encoder has its twin on the other; photographs are not retrained."""
    once, again = replace(base, evaluations=1), replace(base, epochs=2 * base.epochs, evaluations=6)
    length = NOISE[0]
    found = {"CLIP": base}
    if base.data.dataset == "scenes":
        found["image retrained"] = replace(again, frozen="text")
        found["text retrained"] = replace(again, frozen="image")
    found |= disturbed(base) | {f"image noise {length}": replace(once, image_noise=length)}
    return found | {f"text noise {length}": replace(once, text_noise=length)}


def mitigations(base: Recipe) -> dict[str, Recipe]:
    """Notebook 04: ways to memorize less, and their controls; and removal, from data of which WRONG is captioned
    wrongly, with no shared pairs: so every training pair has a CLIPMem."""
    once, data, half = replace(base, evaluations=1), base.data, base.data.pool // 2
    scenes, trained, fifth = data.dataset == "scenes", data.shared + half, ceil(base.epochs / 5)
    found = {"CLIP": base, "5 captions": replace(once, n_captions=5)} | disturbed(base)
    found |= {f"text noise {length}": replace(once, text_noise=length) for length in NOISE}
    found |= {f"CLIP, {epochs} epochs": replace(once, epochs=epochs) for epochs in (fifth, 2 * fifth)}
    if scenes:
        more = replace(once, epochs=fifth, data=replace(data, shared=5 * trained - half))
        longer = replace(base, epochs=2 * base.epochs, evaluations=0)
        found |= {f"{5 * trained:,} pairs, {fifth} epochs": more} if 5 * trained <= MOST else {}
        found[f"CLIP, {longer.epochs} epochs"] = longer
        found[f"5 captions, {longer.epochs} epochs"] = replace(longer, n_captions=5)
        found["oracle"] = _with_removal(base, data.swapped * data.pool / (2 * data.shared + data.pool), "oracle")
    pool = (2 if scenes else 1) * data.shared + data.pool  # of photographs as many as there are
    noisy = replace(base, data=replace(data, shared=0, pool=pool, swapped=WRONG, partly_swapped=0.0, inverted=0.0))
    return found | {"noisy": noisy} | {f"noisy, {rule}": _with_removal(noisy, WRONG, rule) for rule in REMOVAL_RULES}


def beyond(base: Recipe) -> dict[str, Recipe]:
    """Notebook 06: another loss, other widths, and numbers of pairs in about as many steps: of scenes more pairs than
    usual, down to a single pass, of photographs fewer."""
    once, data, half = replace(base, evaluations=1), base.data, base.data.pool // 2
    found = {"CLIP": base, "SigLIP": replace(base, objective="SigLIP")}
    found |= {"half width": replace(once, width=0.5), "double width": replace(once, width=2.0)}
    usual = data.shared + half  # pairs that each model trains on
    for factor in (4, base.epochs) if data.dataset == "scenes" else (0.25, 0.5):
        pairs, epochs = round(factor * usual), ceil(base.epochs / factor)
        if half <= pairs <= MOST:
            sized = replace(once, data=replace(data, shared=pairs - half), epochs=epochs)
            found[f"{pairs:,} pairs, {epochs} epoch{'s' * (epochs > 1)}"] = sized
    return found


CONDITIONS = {
    "01_supervised_vs_ssl": lambda base: {name: replace(base, objective=name) for name in OBJECTIVES},
    "02_miscaptioned_memorization": lambda base: {"CLIP": base},
    "03_encoder_attribution": attribution,
    "04_mitigation_utility": mitigations,
    "06_beyond_clip": beyond,
}
