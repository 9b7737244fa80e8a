"""Which models each notebook compares. Every plan names its conditions: name -> the recipe of f, seed 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.recipes import Recipe, f_and_g

# Standard deviations of the noise on the text embedding, from the paper's grid (its Figure 5b). After the embedding is
# brought to unit length, .3 a coordinate would be three times the embedding itself.
SIGMAS = {"after": (0.05, 0.15), "before": (0.15, 0.3)}
# share of the candidates -> by which rules they are removed
REMOVED = {0.05: ("clipmem", "similarity", "loss", "random"), 0.2: ("clipmem", "random")}


def null_recipe(base: Recipe, seeds: Sequence[int]) -> Recipe:
    """The model of the null: one f more, with a seed of its own. (Comparing the seeds with each other in a circle would
    cost nothing, and would give a mean of exactly 0 whatever happens.)"""
    return replace(base, seed=max(seeds) + 1)


def runs(conditions: Mapping[str, Recipe], seeds: Sequence[int]) -> list[Recipe]:
    """f and g of every condition and seed, and the null of the first condition; each model once."""
    every = [recipe for base in conditions.values() for seed in seeds for recipe in f_and_g(base, seed)]
    return list(dict.fromkeys([*every, null_recipe(next(iter(conditions.values())), seeds)]))


def mislabelled(base: Recipe) -> dict[str, Recipe]:
    """Notebook 02: CLIP as it is."""
    return {"CLIP": base}


def paradigms(base: Recipe) -> dict[str, Recipe]:
    """Notebook 01: the partner changes, and nothing else."""
    return {"caption": base, "label": replace(base, objective="label"), "view": replace(base, objective="view")}


def attribution(base: Recipe) -> dict[str, Recipe]:
    """Notebook 03: each intervention on one encoder has its twin on the other."""
    one = replace(base, looks=1)
    return {
        "CLIP": base,
        "image retrained": replace(base, frozen="text"),
        "text retrained": replace(base, frozen="image"),
        "image augmented": replace(one, crop=0.5, colour=0.2),
        "image augmented more": replace(one, crop=0.25, colour=0.4),
        "words dropped": replace(one, word_dropout=0.3),
        "other captions": replace(one, captions=5),
        "image noise": replace(one, image_noise=0.15),
        "text noise": replace(one, text_noise=0.15),
        "narrow image tower": replace(one, image_width=0.5),
        "narrow text tower": replace(one, text_width=0.5),
    }


def mitigations(base: Recipe) -> dict[str, Recipe]:
    """Notebook 04: more captions, noise on text embeddings, image augmentation, removal, and three of them together.

    Photographs, on which a model takes longer, get the conditions that the claims need and little more.
    """
    one = replace(base, looks=1)
    if base.data.dataset != "scenes":
        return {
            "CLIP": base,
            "5 captions": replace(one, captions=5),
            "noise after 0.05": replace(one, text_noise=0.05, noise_at="after"),
            "noise before 0.15": replace(one, text_noise=0.15, noise_at="before"),
            **{f"5% removed by {rule}": _removed(base, 0.05, rule) for rule in REMOVED[0.05] if rule != "loss"},
        }
    return {
        "CLIP": base,
        **{f"{n} captions": replace(one, captions=n) for n in (2, 3, 4, 5)},
        **{
            f"noise {at} {sigma}": replace(one, text_noise=sigma, noise_at=at)
            for at, sigmas in SIGMAS.items()
            for sigma in sigmas
        },
        "image augmented": replace(one, crop=0.5, colour=0.2),
        **{
            f"{share:.0%} removed by {rule}": _removed(base, share, rule)
            for share, rules in REMOVED.items()
            for rule in rules
        },
        "combined": replace(one, captions=5, text_noise=0.15, noise_at="before", crop=0.5, colour=0.2),
    }


def _removed(base: Recipe, share: float, rule: str) -> Recipe:
    """Without the given share of the candidates, chosen by the rule."""
    return replace(base, remove=round(share * base.data.candidate), remove_by=rule)
