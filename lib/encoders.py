"""Notebook 03: which encoder memorizes? SSLMem of either at matched strength, and how far augmentations move them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP

from lib import models, objectives, sslmem, stats, sweep, tables
from lib.data import Prepared
from lib.recipes import Recipe, f_and_g, key


def at_matched_strength(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """SSLMem of both encoders for every candidate, the image's augmentation as strong as the captions' differences.

    Strength is how far g, which saw neither, moves external inputs on average. Scores between two of `sslmem.STRENGTHS`
    are interpolated; where none moves the image encoder as far, the strongest is taken (`matched` says so).

    Returns:
        One row a (seed, pair): seed, pair_id, kind, image, text, crop (smallest share of the area), colour, matched.
    """
    rows = np.concatenate([prepared.subsets["candidate"], prepared.subsets["external"]])

    def of(recipe: Recipe) -> pd.DataFrame:
        return tables.kept("strengths", recipe, prepared, lambda m: sslmem.by_strength(m, prepared, rows))

    recipes = [r for seed in seeds for r in f_and_g(base, seed)]
    both = sweep.each("encoders", lambda r, note: of(r), recipes)
    held, parts = len(prepared.subsets["candidate"]), []
    for seed, of_f, of_g in zip(seeds, both[::2], both[1::2], strict=True):
        parts.append(_matched(of_f, of_g, held).assign(seed=seed))
    truth = prepared.table[["pair_id", "kind"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def _matched(of_f: pd.DataFrame, of_g: pd.DataFrame, held: int) -> pd.DataFrame:
    columns = [f"image_{i}" for i in range(len(sslmem.STRENGTHS))]
    moved, target = of_g[columns][held:].mean().cummax().to_numpy(), float(of_g["text"][held:].mean())
    by_strength = (of_g[columns] - of_f[columns])[:held].to_numpy()
    above, share = _place(moved, target)
    crop, colour = (1 - share) * np.array(sslmem.STRENGTHS[above - 1]) + share * np.array(sslmem.STRENGTHS[above])
    return pd.DataFrame(
        {
            "pair_id": of_f["pair_id"][:held],
            "image": (1 - share) * by_strength[:, above - 1] + share * by_strength[:, above],
            "text": (of_g["text"] - of_f["text"])[:held],
            "crop": crop,
            "colour": colour,
            "matched": bool(moved[0] <= target <= moved[-1]),
        }
    )


def _place(moved: np.ndarray, target: float) -> tuple[int, float]:
    """Where a displacement lies among rising ones: the step above it, and its share of the way from the step below."""
    above = int(np.searchsorted(moved, target).clip(1, len(moved) - 1))
    return above, float(np.clip((target - moved[above - 1]) / max(moved[above] - moved[above - 1], 1e-9), 0, 1))


def displacement(base: Recipe, changed: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared) -> pd.Series:
    """How far each training augmentation of `changed` moves an embedding of `base`'s g: mean L2 distance over external
    pairs and seeds, by name."""

    names = "-".join(key(recipe, prepared.fingerprint)[:6] for recipe in changed.values())

    def of(recipe: Recipe) -> pd.DataFrame:
        def make(model: CLIP) -> pd.DataFrame:
            return pd.DataFrame([{name: _moved(model, r, prepared) for name, r in changed.items()}])

        return tables.kept(f"displacement-{names}", recipe, prepared, make)

    return pd.concat([of(f_and_g(base, seed)[1]) for seed in seeds]).mean()


@torch.no_grad()
def _moved(model: CLIP, recipe: Recipe, prepared: Prepared) -> float:
    where, rows = next(model.parameters()).device, prepared.subsets["external"]
    images = torch.from_numpy(prepared.pictures(rows)).to(where)
    tokens = torch.from_numpy(prepared.tokens[rows]).long().to(where)
    every = torch.arange(len(rows), device=where)
    pairs = objectives.Resident(images, every, tokens, torch.zeros(len(rows), 0, device=where), every < 0)
    x, partner = objectives.batch(pairs, every, recipe, torch.Generator().manual_seed(0))
    plain = models.encode_image(model, models.normalise(images)), models.encode_text(model, tokens[:, 0])
    changed = models.encode_image(model, x), models.encode_text(model, partner)
    place = 1 if recipe.word_dropout or recipe.captions > 1 else 0
    return float((plain[place] - changed[place]).norm(dim=1).mean())


def fall(whole: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """By how much CLIPMem of each candidate falls from `whole` to `changed` (tables of `tables.scores`): seed, pair_id,
    kind, fall."""
    both = whole[whole["subset"] == "candidate"].merge(
        changed[["seed", "pair_id", "clipmem"]],
        on=["seed", "pair_id"],
        suffixes=("", "_changed"),
        validate="one_to_one",
    )
    return both[["seed", "pair_id", "kind"]].assign(fall=both["clipmem"] - both["clipmem_changed"])


def fall_at(displacement: float, steps: Sequence[tuple[float, pd.DataFrame]]) -> pd.DataFrame:
    """The fall of each pair at a displacement, interpolated between augmentations of rising strength (displacement,
    fall), with (0, 0) before the first; beyond the strongest, that of the strongest."""
    steps = sorted(steps, key=lambda step: step[0])
    moved = np.array([0.0, *(step[0] for step in steps)])
    falls = np.stack([np.zeros(len(steps[0][1])), *(step[1]["fall"] for step in steps)])
    above, share = _place(moved, displacement)
    return steps[0][1].assign(fall=(1 - share) * falls[above - 1] + share * falls[above])


def gap(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Mean of `column` in the first table minus that in the second, paired by seed and pair."""
    both = first.merge(second, on=["seed", "pair_id"], suffixes=("_1", "_2"), validate="one_to_one")
    return stats.mean(both.assign(gap=both[f"{column}_1"] - both[f"{column}_2"]), "gap")
