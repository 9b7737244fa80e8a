"""Notebooks 03 and 04: which encoder memorizes, and what mitigations do to memorization and to utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from threadpoolctl import threadpool_limits

from lib import model as models
from lib import objectives, runs, scores, stats, utility
from lib.recipes import Recipe, f_and_g
from lib.runs import f_minus_g, measured
from lib.scores import STRENGTHS
from lib.utility import Labelled

if TYPE_CHECKING:
    from lib.study import Study

FAMILIES = ("captions", "noise after", "noise before", "augmented", "removed", "combined")


# --- notebook 03 ---


def at_matched_strength(study: Study, condition: str) -> pd.DataFrame:
    """Return SSLMem of both encoders for every candidate, the image's augmentation as strong as the captions' variety.

    Strength is how far g, which saw neither, moves external inputs on average. Scores between two of `STRENGTHS` are
    interpolated; where none moves the image encoder as far, the strongest is taken (`matched` says so).

    Returns:
        One row per (seed, pair): seed, pair_id, corruption, image, text, crop (smallest share of the area), colour,
        matched.
    """
    rows = np.concatenate([study.prepared.subsets["candidate"], study.prepared.subsets["external"]])
    both = measured(study, "strengths", lambda model, r: scores.by_strength(model, study.prepared, rows), [condition])
    columns, count, parts = [f"image_{i}" for i in range(len(STRENGTHS))], len(study.prepared.subsets["candidate"]), []
    for seed in study.seeds:
        one = both[both["seed"] == seed]
        g = one[one["role"] == "g"]
        moved = g[columns][count:].mean().cummax().to_numpy()
        target = float(g["text"][count:].mean())
        fell = f_minus_g(one, {name: name for name in (*columns, "text")}, sign=-1)[:count]
        above, share = _place(moved, target)
        crop, colour = (1 - share) * np.array(STRENGTHS[above - 1]) + share * np.array(STRENGTHS[above])
        image = (1 - share) * fell[columns[above - 1]] + share * fell[columns[above]]
        matched = bool(moved[0] <= target <= moved[-1])
        part = fell[["seed", "pair_id", "text"]].assign(image=image, crop=crop, colour=colour, matched=matched)
        parts.append(part)
    truth = study.prepared.table[["pair_id", "corruption"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def _place(moved: np.ndarray, target: float) -> tuple[int, float]:
    """Return where a displacement lies among rising ones: the step above it, and its share of the way to that step."""
    above = int(np.searchsorted(moved, target).clip(1, len(moved) - 1))
    return above, float(np.clip((target - moved[above - 1]) / max(moved[above] - moved[above - 1], 1e-9), 0, 1))


def displacement(study: Study, conditions: Sequence[str]) -> pd.Series:
    """Return how far each condition's augmentation moves an embedding of the plain g: mean L2 distance over external
    pairs and seeds, by condition."""

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return pd.DataFrame([{name: _moved(model, study.conditions[name], study) for name in conditions}])

    names = "-".join(runs.run_key(study.conditions[name], study.prepared)[:6] for name in conditions)
    first = next(iter(study.conditions))
    return measured(study, f"displacement-{names}", measure, [first], roles="g")[list(conditions)].mean()


@torch.no_grad()
def _moved(model: CLIP, recipe: Recipe, study: Study) -> float:
    prepared, rows, where = study.prepared, study.prepared.subsets["external"], next(model.parameters()).device
    images = torch.from_numpy(prepared.images[rows]).to(where)
    tokens = torch.from_numpy(prepared.tokens[rows]).long().to(where)
    every = torch.arange(len(rows), device=where)
    nothing = torch.zeros(len(rows), 0, device=where)
    pairs = objectives.Resident(images=images, rows=every, tokens=tokens, targets=nothing)
    x, partner = objectives.batch(pairs, every, recipe, torch.Generator().manual_seed(0))
    if recipe.word_dropout or recipe.n_captions > 1:
        moved = models.encode_text(model, tokens[:, 0]) - models.encode_text(model, partner)
    else:
        moved = models.encode_image(model, models.normalise(images)) - models.encode_image(model, x)
    return float(moved.norm(dim=1).mean())


def fall(plain: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """Return by how much CLIPMem of each pair falls from one table to another: seed, pair_id, corruption, fall."""
    keys = ["seed", "pair_id"]
    both = plain.merge(changed[[*keys, "clipmem"]], on=keys, suffixes=("", "_changed"), validate="one_to_one")
    return both[["seed", "pair_id", "corruption"]].assign(fall=both["clipmem"] - both["clipmem_changed"])


def fall_at(displacement: float, steps: Sequence[tuple[float, pd.DataFrame]]) -> pd.DataFrame:
    """Return the fall of each pair at a displacement, interpolated between augmentations of rising strength
    (displacement, fall), with (0, 0) before the first; beyond the strongest, that of the strongest."""
    steps = sorted(steps, key=lambda step: step[0])
    moved = np.array([0.0, *(step[0] for step in steps)])
    falls = np.stack([np.zeros(len(steps[0][1])), *(step[1]["fall"] for step in steps)])
    above, share = _place(moved, displacement)
    return steps[0][1].assign(fall=(1 - share) * falls[above - 1] + share * falls[above])


def gap(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Return the mean of `column` in the first table minus that in the second, paired by seed and pair."""
    both = first.merge(second, on=["seed", "pair_id"], suffixes=("_1", "_2"), validate="one_to_one")
    return stats.mean(both.assign(gap=both[f"{column}_1"] - both[f"{column}_2"]), "gap")


# --- notebook 04 ---


def family(name: str) -> str:
    """Return which family of mitigations a condition belongs to; "CLIP" for none."""
    return next((word for word in FAMILIES if word in name), "CLIP")


def encoder_scores(study: Study) -> pd.DataFrame:
    """Return SSLMem of both encoders for every candidate: condition, seed, pair_id, sslmem_image, sslmem_text."""
    rows = study.prepared.subsets["candidate"]
    both = measured(study, "encoders", lambda model, recipe: scores.by_encoder(model, study.prepared, rows))
    return f_minus_g(both, {"image": "sslmem_image", "text": "sslmem_text"}, sign=-1)


def without_removed(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table (condition, seed, pair_id) whose pairs the condition really trains on."""
    keep = np.full(len(table), True)
    for name, base in study.conditions.items():
        for seed in study.seeds if base.remove else ():
            removed = runs.left_out(f_and_g(base, seed)[0], study.prepared)
            here = (table["condition"] == name) & (table["seed"] == seed)
            keep &= ~(here & table["pair_id"].isin(study.prepared.pair_ids[removed])).to_numpy()
    return table[keep].reset_index(drop=True)


def utilities(study: Study, labelled: list[Labelled]) -> pd.DataFrame:
    """Return the utility of every f: condition, seed, the columns of `utility.utilities`, and tested, the number of
    images of the smallest test."""
    name = "-".join(["utility", *(f"{one.name}.{one.fingerprint[:8]}" for one in labelled)])

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return pd.DataFrame([utility.utilities(model, study.prepared, labelled)])

    tested = min([len(study.prepared.subsets["test"]), *(len(one.test_classes) for one in labelled)])
    with threadpool_limits(1):  # the probes of several models at once, each with all cores, take 30 times as long
        return measured(study, name, measure, roles="f").drop(columns="role").assign(tested=tested)


def summary(table: pd.DataFrame, useful: pd.DataFrame, measure: str, score: str = "clipmem") -> pd.DataFrame:
    """Return one row per condition: name, family, m (mean of `score`) and u (mean of `measure`), each with its limits
    over seeds."""
    rows = []
    for name in dict.fromkeys(table["condition"]):
        part = table[table["condition"] == name]
        m = stats.over_seeds(part.groupby("seed")[score].mean(), part["pair_id"].nunique())
        u = stats.over_seeds(useful.loc[useful["condition"] == name, measure], int(useful["tested"].min()))
        limits = {"m": m.value, "m_low": m.low, "m_high": m.high, "u": u.value, "u_low": u.low, "u_high": u.high}
        rows.append({"name": name, "family": family(name), **limits})
    return pd.DataFrame(rows)


def less_memorized(table: pd.DataFrame, name: str) -> stats.Estimate:
    """Return CLIPMem of the same candidates without the mitigation minus with it, paired by seed and pair.

    Not for removal, where every seed trains on other candidates: `stats.mean` raises a ValueError then.
    """
    plain, changed = (table[table["condition"] == condition] for condition in ("CLIP", name))
    return stats.mean(fall(plain, changed), "fall")


def more_useful(useful: pd.DataFrame, measure: str, name: str, than: str = "CLIP") -> stats.Estimate:
    """Return `measure` under one condition minus that under another, paired by seed; test images are taken as given."""
    wide = useful.pivot(index="seed", columns="condition", values=measure)
    return stats.over_seeds((wide[name] - wide[than]).to_numpy(), int(useful["tested"].min()))


def relative_falls(table: pd.DataFrame) -> pd.DataFrame:
    """Return by which share of plain CLIP's mean CLIPMem falls, raw and range-normalised: index (condition, seed)."""
    means = table.groupby(["condition", "seed"], sort=False)[["clipmem", "clipmem_normalised"]].mean()
    return 1 - means / means.loc["CLIP"]


def range_effect(table: pd.DataFrame, name: str) -> stats.Estimate:
    """Return the relative fall of range-normalised CLIPMem minus that of the raw score, by seed.

    Above 0, dividing by the range lets a mitigation look better than it is.
    """
    falls = relative_falls(table).loc[name]
    count = table.loc[table["condition"] == name, "pair_id"].nunique()
    return stats.over_seeds((falls["clipmem_normalised"] - falls["clipmem"]).to_numpy(), count)
