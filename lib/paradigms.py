"""Notebook 01: images trained to agree with a label, a caption or another view, compared layer by layer and by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from lib import sweep, tables, units
from lib.data import Prepared
from lib.recipes import Recipe, f_and_g
from lib.train import training_rows

DIRECT = {"label": "labelmem", "caption": "clipmem", "view": "sslmem_image"}  # each paradigm's own score


def unit_scores(
    conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared, augmentations: int
) -> pd.DataFrame:
    """UnitMem and ClassMem of every unit of every f: paradigm, seed, layer, unit, unitmem, classmem."""

    def one(recipe: Recipe) -> pd.DataFrame:
        rows = training_rows(recipe, prepared)
        name = f"units{augmentations}"
        return tables.kept(name, recipe, prepared, lambda model: units.table(model, prepared, rows, augmentations))

    f_of = {(name, seed): f_and_g(base, seed)[0] for name, base in conditions.items() for seed in seeds}
    found = sweep.each("units", lambda recipe, note: one(recipe), list(f_of.values()))
    return _stacked(f_of, found)


def layer_scores(conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """LayerMem: mean SSLMem of the candidates at every layer's output: paradigm, seed, layer, layermem."""
    rows = prepared.subsets["candidate"]

    def distances(recipe: Recipe) -> pd.DataFrame:
        def make(model):
            found = units.layer_distances(model, prepared, rows)
            return pd.DataFrame({"layer": range(1, len(found) + 1), "distance": found.mean(axis=1)})

        return tables.kept("layers", recipe, prepared, make)

    pairs = {(name, seed): f_and_g(base, seed) for name, base in conditions.items() for seed in seeds}
    both = sweep.each("layers", lambda r, note: distances(r), [recipe for pair in pairs.values() for recipe in pair])
    found = [
        of_g.assign(layermem=of_g["distance"] - of_f["distance"])
        for of_f, of_g in zip(both[::2], both[1::2], strict=True)
    ]
    return _stacked(pairs, found).drop(columns="distance")


def _stacked(names: Mapping[tuple[str, int], object], found: Sequence[pd.DataFrame]) -> pd.DataFrame:
    parts = [table.assign(paradigm=name, seed=seed) for (name, seed), table in zip(names, found, strict=True)]
    return pd.concat(parts, ignore_index=True)


def direct_scores(
    conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared, augmentations: int
) -> pd.DataFrame:
    """Every candidate's own score under each paradigm, with f and g, and its percentile among the candidates.

    Returns:
        One row a (seed, pair): seed, pair_id, kind, mislabelled, rarity; label, caption, view (raw scores), and
        label_rank, caption_rank, view_rank in [0, 1], 1 = memorized most.
    """
    merged = pd.DataFrame()
    for name, base in conditions.items():
        scores = tables.scores(base, seeds, prepared, augmentations)
        scores = scores[scores["subset"] == "candidate"].rename(columns={DIRECT[name]: name})
        scores[f"{name}_rank"] = scores.groupby("seed")[name].rank(pct=True)
        columns = ["seed", "pair_id", name, f"{name}_rank"] + (["kind", "rarity"] if merged.empty else [])
        merged = scores[columns] if merged.empty else merged.merge(scores[columns], on=["seed", "pair_id"])
    return merged.merge(prepared.table[["pair_id", "mislabelled"]], on="pair_id")


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Kendall's rank correlation of the candidates' scores: columns first, second, seed, tau.

    Between two paradigms at one seed, and, as a ceiling, between two seeds of one paradigm (named by the earlier seed).
    """
    wide = {name: scores.pivot(index="pair_id", columns="seed", values=name) for name in DIRECT}
    rows = []
    for a, b in combinations(DIRECT, 2):
        rows += [(a, b, seed, kendalltau(wide[a][seed], wide[b][seed]).statistic) for seed in wide[a]]
    for name, table in wide.items():
        rows += [(name, name, s, kendalltau(table[s], table[t]).statistic) for s, t in combinations(table, 2)]
    return pd.DataFrame(rows, columns=["first", "second", "seed", "tau"])


def between(taus: pd.DataFrame) -> np.ndarray:
    """By seed: how much closer CLIP is to each of the two than they are to each other, the smaller of the two leads."""
    by = taus[taus["first"] != taus["second"]].pivot(index="seed", columns=["first", "second"], values="tau")
    nearest = np.minimum(by["label", "caption"], by["caption", "view"])
    return (nearest - by["label", "view"]).to_numpy()


def at_matched_utility(history: pd.DataFrame, value: str) -> pd.DataFrame:
    """`value` of every paradigm and seed where its linear probe first reaches the best of the weakest one.

    Args:
        history: paradigm, seed, epoch, probe and `value` at the looks along training.

    Returns:
        paradigm, seed, `value`, probe (the level that all are compared at).
    """
    rows = []
    for seed, part in history.groupby("seed"):
        level = part.groupby("paradigm")["probe"].max().min()
        for name, curve in part.sort_values("epoch").groupby("paradigm"):
            best = curve.assign(probe=curve["probe"].cummax()).drop_duplicates("probe")  # where each was first reached
            rows.append((name, seed, float(np.interp(level, best["probe"], best[value])), level))
    return pd.DataFrame(rows, columns=["paradigm", "seed", value, "probe"])
