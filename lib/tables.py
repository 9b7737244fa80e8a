"""From trained models to the tidy tables of notebooks 01 and 02.

Every function takes the `study` of a notebook first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from open_clip.model import CLIP
from scipy.stats import kendalltau

from lib import runs, scores
from lib.recipes import Recipe, f_and_g
from lib.runs import cached, f_minus_g, measured
from lib.scores import DEFAULT_SUBSETS
from lib.train import training_rows

if TYPE_CHECKING:
    from lib.study import Study

TRUTH = ["pair_id", "corruption", "share_swapped", "vagueness", "rarity"]
OWN_SCORE = {"label": "labelmem", "caption": "clipmem", "view": "sslmem_image"}  # of each paradigm


# --- scores of pairs ---


def score_pairs(
    study: Study,
    conditions: Sequence[str] = (),
    subsets: Sequence[str] = DEFAULT_SUBSETS,
    noise_floor: bool = False,
) -> pd.DataFrame:
    """Return the memorization of every pair of `subsets` under every condition and seed.

    Returns:
        One row per (condition, seed, pair): condition, seed, pair_id, subset, and the ground truth corruption,
        share_swapped, vagueness, rarity (NaN where unknown). For CLIP: clipmem (raw, contrast), clipmem_plain,
        clipmem_normalised, the single-model baselines similarity_f, similarity_g, loss_f and, if asked for, noise_floor
        (f minus the extra f of the first condition). For the other paradigms: labelmem or sslmem_image.
    """
    name = f"pairs-{study.augmentations}-{'-'.join(subset[:2] for subset in subsets)}"

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return scores.measure(model, recipe.objective, study.prepared, study.augmentations, subsets)

    both = measured(study, name, measure, conditions)
    found = f_minus_g(both, {"contrast": "clipmem", "plain": "clipmem_plain"} if "contrast" in both else {})
    f, g = (both[both["role"] == role].reset_index(drop=True) for role in "fg")
    if "contrast" in both:
        for _, part in found.groupby(["condition", "seed"]):
            normalised = scores.range_normalised(part["clipmem"], part["subset"] == "candidate")
            found.loc[part.index, "clipmem_normalised"] = normalised
        found["similarity_f"], found["similarity_g"], found["loss_f"] = f["similarity"], g["similarity"], f["loss"]
    if noise_floor:
        other = cached(study, name, study.noise_floor, measure).set_index("pair_id")["contrast"]
        found["noise_floor"] = f["contrast"] - found["pair_id"].map(other)
    if "probability" in both:
        found["labelmem"] = f["probability"] - g["probability"]
    if "distance_image" in both:
        found["sslmem_image"] = g["distance_image"] - f["distance_image"]
    return found.merge(study.prepared.table[TRUTH], on="pair_id", validate="many_to_one")


def candidates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the candidate pairs."""
    return table[table["subset"] == "candidate"]


def during_training(study: Study) -> pd.DataFrame:
    """Return CLIPMem of candidates and external pairs at each evaluation, of images as they are: seed, epoch, pair_id,
    subset, corruption, clipmem (raw, contrast). Of the first condition."""
    parts = []
    for seed in study.seeds:
        folders = [runs.run(recipe, study.prepared) for recipe in f_and_g(study.base, seed)]
        f, g = (pd.read_parquet(folder / "evaluations.parquet") for folder in folders)
        parts.append(f[["epoch", "pair_id", "subset"]].assign(seed=seed, clipmem=f["contrast"] - g["contrast"]))
    truth = study.prepared.table[["pair_id", "corruption"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def histories(study: Study) -> pd.DataFrame:
    """Return loss, learning rate, utility and UnitMem by epoch of every model: condition, seed, role, epoch, ..."""
    parts = []
    for condition, base in study.conditions.items():
        for seed in study.seeds:
            for role, recipe in zip("fg", f_and_g(base, seed), strict=True):
                table = pd.read_parquet(runs.run(recipe, study.prepared) / "history.parquet")
                parts.append(table.assign(condition=condition, seed=seed, role=role))
    return pd.concat(parts, ignore_index=True)


# --- notebook 01: three paradigms ---


def unit_scores(study: Study) -> pd.DataFrame:
    """Return UnitMem and ClassMem of every unit of every f: condition, seed, layer, unit, unitmem, classmem."""

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        rows = training_rows(recipe, study.prepared)
        return scores.unit_scores(model, study.prepared, rows, study.augmentations)

    return measured(study, f"units-{study.augmentations}", measure, roles="f").drop(columns="role")


def layer_scores(study: Study) -> pd.DataFrame:
    """Return LayerMem, the mean SSLMem of the candidates at every layer's output: condition, seed, layer, layermem."""
    rows = study.prepared.subsets["candidate"]
    both = measured(study, "layers", lambda model, recipe: scores.layer_distances(model, study.prepared, rows))
    return f_minus_g(both, {"distance": "layermem"}, sign=-1)


def own_scores(study: Study) -> pd.DataFrame:
    """Return every candidate's own score under each paradigm, and its percentile among the candidates.

    Returns:
        One row per (seed, pair): seed, pair_id, corruption, mislabelled, rarity; label, caption, view (raw scores), and
        label_rank, caption_rank, view_rank in [0, 1], 1 = memorized most.
    """
    merged = study.prepared.table[["pair_id", "corruption", "rarity", "mislabelled"]]
    for name, score in OWN_SCORE.items():
        own = candidates(score_pairs(study, [name])).rename(columns={score: name})
        own[f"{name}_rank"] = own.groupby("seed")[name].rank(pct=True)
        keys = ["seed", "pair_id"] if "seed" in merged else ["pair_id"]
        merged = merged.merge(own[["seed", "pair_id", name, f"{name}_rank"]], on=keys)
    return merged.sort_values(["seed", "pair_id"], ignore_index=True)


def agreement(own: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's rank correlation of the candidates' scores: first, second, seed, tau.

    Between two paradigms at one seed, and, as a ceiling, between two seeds of one paradigm (named by the earlier seed).
    """
    wide = {name: own.pivot(index="pair_id", columns="seed", values=name) for name in OWN_SCORE}
    rows = []
    for a, b in combinations(OWN_SCORE, 2):
        rows += [(a, b, seed, kendalltau(wide[a][seed], wide[b][seed]).statistic) for seed in wide[a]]
    for name, table in wide.items():
        rows += [(name, name, s, kendalltau(table[s], table[t]).statistic) for s, t in combinations(table, 2)]
    return pd.DataFrame(rows, columns=["first", "second", "seed", "tau"])


def between(taus: pd.DataFrame) -> np.ndarray:
    """Return, by seed, how much closer CLIP is to the farther of the other two than they are to each other `[S]`."""
    by = taus[taus["first"] != taus["second"]].pivot(index="seed", columns=["first", "second"], values="tau")
    nearest = np.minimum(by["label", "caption"], by["caption", "view"])
    return (nearest - by["label", "view"]).to_numpy()


def at_matched_utility(history: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return `value` of every paradigm and seed where its probe first reaches the best of the weakest one.

    Args:
        history: condition, seed, epoch, probe and `value` at the evaluations.

    Returns:
        condition, seed, `value`, probe (the level that all are compared at).
    """
    rows = []
    for seed, part in history.groupby("seed"):
        level = part.groupby("condition")["probe"].max().min()
        for name, curve in part.sort_values("epoch").groupby("condition"):
            best = curve.assign(probe=curve["probe"].cummax()).drop_duplicates("probe")  # where each was first reached
            rows.append((name, seed, float(np.interp(level, best["probe"], best[value])), level))
    return pd.DataFrame(rows, columns=["condition", "seed", value, "probe"])
