"""Notebook 04: what each mitigation does to memorization and to utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lib import probes, stats, sweep, tables
from lib.data import Prepared
from lib.probe_sets import Labelled
from lib.recipes import Recipe, f_and_g

FAMILIES = ("captions", "noise after", "noise before", "augmented", "removed", "combined")


def family(name: str) -> str:
    """Which family of mitigations a condition belongs to; "CLIP" for none."""
    return next((word for word in FAMILIES if word in name), "CLIP")


def remaining_scores(
    conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared, augmentations: int
) -> pd.DataFrame:
    """Memorization of the candidates that a condition trains on, of the pair and of either encoder.

    Returns:
        One row a (condition, seed, pair): condition, the columns of `tables.scores`, sslmem_image, sslmem_text.
    """
    parts = []
    for name, base in conditions.items():
        scores = tables.scores(base, seeds, prepared, augmentations)
        encoders = tables.sslmem_by_encoder(base, seeds, prepared)
        scores = scores[scores["subset"] == "candidate"].merge(encoders, on=["seed", "pair_id"], validate="one_to_one")
        scores["condition"] = name
        gone = [sweep.left_out(f_and_g(base, seed)[0], prepared) for seed in seeds]
        for seed, rows in zip(seeds, gone, strict=True):
            if rows is not None:
                taken = scores["pair_id"].isin(prepared.pairs.pair_ids[rows]) & (scores["seed"] == seed)
                scores = scores[~taken]
        parts.append(scores)
    return pd.concat(parts, ignore_index=True)


def offsets(
    conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared, augmentations: int
) -> pd.Series:
    """Mean CLIPMem of the external pairs, which neither f nor g saw, by condition: how far the two differ at all."""
    found = {name: tables.scores(base, seeds, prepared, augmentations) for name, base in conditions.items()}
    means = {name: scores.loc[scores["subset"] == "external", "clipmem"].mean() for name, scores in found.items()}
    return pd.Series(means, name="external")


def utilities(
    conditions: Mapping[str, Recipe], seeds: Sequence[int], prepared: Prepared, labelled: list[Labelled]
) -> pd.DataFrame:
    """Utility of every f: condition, seed, the columns of `probes.utilities`, and tested, the images of the smallest
    test."""
    name = "-".join(["utility", *(s.name for s in labelled)])

    def of(recipe: Recipe) -> pd.DataFrame:
        return tables.kept(name, recipe, prepared, lambda m: pd.DataFrame([probes.utilities(m, prepared, labelled)]))

    f_of = {(condition, seed): f_and_g(base, seed)[0] for condition, base in conditions.items() for seed in seeds}
    found = sweep.each("utility", lambda recipe, note: of(recipe), list(f_of.values()))
    rows = zip(f_of, found, strict=True)
    tested = min([len(prepared.subsets["disjoint"]), *(len(s.test_targets) for s in labelled)])
    return pd.concat([table.assign(condition=c, seed=s, tested=tested) for (c, s), table in rows], ignore_index=True)


def summary(scores: pd.DataFrame, utility: pd.DataFrame, measure: str, memorization: str = "clipmem") -> pd.DataFrame:
    """One row a condition: name, family, m (mean memorization) and u (mean of `measure`), each with its limits over
    seeds."""
    rows = []
    for name in dict.fromkeys(scores["condition"]):
        by_seed = scores[scores["condition"] == name].groupby("seed")[memorization].mean()
        m = stats.over_seeds(by_seed, len(scores))
        u = stats.over_seeds(utility.loc[utility["condition"] == name, measure], int(utility["tested"].min()))
        limits = {"m": m.value, "m_low": m.low, "m_high": m.high, "u": u.value, "u_low": u.low, "u_high": u.high}
        rows.append({"name": name, "family": family(name), **limits})
    return pd.DataFrame(rows)


def less_memorized(scores: pd.DataFrame, name: str, memorization: str = "clipmem") -> stats.Estimate:
    """CLIPMem of the same candidates without the mitigation minus with it, paired by seed and pair.

    Not for removal, where every seed trains on other candidates: `stats.mean` raises a ValueError then.
    """
    plain, other = (scores[scores["condition"] == c][["seed", "pair_id", memorization]] for c in ("CLIP", name))
    both = plain.merge(other, on=["seed", "pair_id"], suffixes=("", "_other"))
    return stats.mean(both.assign(fall=both[memorization] - both[f"{memorization}_other"]), "fall")


def more_useful(utility: pd.DataFrame, measure: str, name: str, than: str = "CLIP") -> stats.Estimate:
    """`measure` under one condition minus that under another, paired by seed; the test images are taken as given."""
    wide = utility.pivot(index="seed", columns="condition", values=measure)
    return stats.over_seeds((wide[name] - wide[than]).to_numpy(), int(utility["tested"].min()))


def range_effect(scores: pd.DataFrame, name: str) -> stats.Estimate:
    """Relative fall of CLIPMem divided by its range minus the relative fall of the raw score, by seed.

    Above 0, dividing by the range lets a mitigation look better than it is.
    """
    means = scores.groupby(["condition", "seed"])[["clipmem", "clipmem_normalised"]].mean()
    relative = 1 - means.loc[name] / means.loc["CLIP"]
    return stats.over_seeds(np.asarray(relative["clipmem_normalised"] - relative["clipmem"]), len(scores))
