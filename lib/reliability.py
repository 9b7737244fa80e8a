"""What halves redrawn for every seed make possible: a test by randomisation, and estimates of single pairs.

Tables have one row per seed and pair of the pool, with clipmem and member (1: f trained on the pair, -1: g did).
"""

from itertools import permutations

import numpy as np
import pandas as pd
from scipy import stats as distributions
from scipy.stats import false_discovery_control, rankdata

from lib.stats import Estimate, Panel, estimate, interval, roc_auc

RATE = 0.05  # share of false discoveries among the pairs that are called surely memorized
LEAST = 0.3  # reliability below which a ranking of pairs is not interpreted


def randomisation(table: pd.DataFrame, by: str = "corruption", draws: int = 2000) -> pd.DataFrame:
    """Test whether it matters which model was trained on a pair, with one pair of models (Fisher's randomisation test).

    Chance alone decided the halves, equally often within each kind and share of swapped words. If nothing is memorized,
    another decision would have given the same alignments. Then the real mean of `member` x (A_f - A_g) is one of many
    equally likely ones. Return one row per kind and draw: `by`, draw, mean; draw 0 is the real decision.
    """
    rng, parts = np.random.default_rng(0), []
    for kind, part in table.groupby(by):
        part = part.sort_values("share_swapped")
        member, share = part["member"].to_numpy(), part["share_swapped"].to_numpy()
        gap = (part["clipmem"] * part["member"]).to_numpy()  # A_f - A_g
        shuffled = (member[np.lexsort((rng.random(len(part)), share))] for _ in range(draws))  # within each share
        signs = np.stack([member, *shuffled])
        parts.append(pd.DataFrame({by: kind, "draw": range(draws + 1), "mean": signs @ gap / len(gap)}))
    return pd.concat(parts, ignore_index=True)


def per_pair(table: pd.DataFrame) -> pd.DataFrame:
    """Return the estimate of every pair over the seeds: pair_id, corruption, inside and outside (mean alignment under
    the models that were trained on the pair, and under the others), clipmem (their difference), error (its standard
    error) and sure: whether it is memorized at a false-discovery rate of RATE (Benjamini & Hochberg 1995).

    The error comes from the spread between seeds of all pairs of the same corruption, as a few seeds say little about
    the spread of one pair.
    """
    table = table.rename(columns={"contrast_in": "inside", "contrast_out": "outside"})
    grouped = table.groupby("pair_id", sort=False)
    found = grouped[["clipmem", "inside", "outside"]].mean()
    found["corruption"] = grouped["corruption"].first()
    variance = grouped["clipmem"].var().groupby(found["corruption"]).mean()  # within pairs, pooled
    found["error"] = np.sqrt(found["corruption"].map(variance) / table["seed"].nunique())
    chance = distributions.norm.sf(found["clipmem"] / found["error"])
    found["sure"] = false_discovery_control(np.nan_to_num(chance, nan=1.0)) <= RATE  # with one seed nothing is sure
    return found.reset_index()


def membership(table: pd.DataFrame, score: str = "similarity") -> Estimate:
    """Estimate how well one model tells which pairs it was trained on: the ROC AUC of its score between pairs that it
    was trained on and pairs that it was not, above .5."""

    columns = (f"{score}_in", f"{score}_out")

    def statistic(one: Panel, weights: np.ndarray) -> np.ndarray:
        values = np.concatenate([one.columns[name] for name in columns])
        inside = np.arange(len(values)) < len(values) / 2
        return roc_auc(values, inside, np.concatenate([weights, weights], axis=1)) - 0.5

    return interval(statistic, table, columns)


def _ranked(table: pd.DataFrame, score: str) -> np.ndarray:
    """Return the ranks of P pairs under each of S seeds, `[S, P]`, of mean 0 and unit length."""
    wide = table.pivot(index="seed", columns="pair_id", values=score).sort_index(axis=1)
    return _standard(rankdata(wide.to_numpy(), axis=1))


def _standard(rows: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and unit length."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _across(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean rank correlation of different seeds: they share no models, so no noise either. NaN with one."""
    found = [a[s] @ b[t] for s, t in permutations(range(len(a)), 2)]
    return float(np.mean(found)) if found else float("nan")


def reliability(table: pd.DataFrame, score: str = "clipmem", seeds: int = 1) -> float:
    """Return the rank correlation of two measurements of the same pairs, each the mean over `seeds` seeds: between
    single seeds as it is measured, beyond by the Spearman-Brown formula. NaN with one seed."""
    ranked = _ranked(table, score)
    single = _across(ranked, ranked)
    return single if single <= 0 else seeds * single / (1 + (seeds - 1) * single)  # below 0 the formula has a pole


def correlation(table: pd.DataFrame, first: str, second: str, corrected: bool = True) -> float:
    """Return the rank correlation of two scores across seeds; `corrected`, it is divided by the square root of both
    reliabilities: what it would be without noise (Spearman 1904), NaN where one of them has no reliability."""
    a, b = _ranked(table, first), _ranked(table, second)
    return _corrected(a, b) if corrected else (_across(a, b) + _across(b, a)) / 2


def _corrected(a: np.ndarray, b: np.ndarray, least: float = 0.0) -> float:
    """Return the correlation of two scores of which noise takes nothing; a reliability counts as `least` or more."""
    own = max(_across(a, a), least), max(_across(b, b), least)
    return (_across(a, b) + _across(b, a)) / 2 / (own[0] * own[1]) ** 0.5 if min(own) > 0 else float("nan")


def between(table: pd.DataFrame, middle: str, ends: tuple[str, str], n_boot: int = 200) -> Estimate:
    """Estimate by how much the lower of the middle score's correlations with either end exceeds that of the two ends.

    `table` has one row per seed and pair, with the three scores. The variance is that of a bootstrap over pairs plus
    that of a jackknife over seeds, which is rather too much. NaN where a score has no reliability.
    """
    ranked = {name: _ranked(table, name) for name in (middle, *ends)}
    count, pairs = ranked[middle].shape
    if not all(_across(values, values) > 0 for values in ranked.values()):
        return estimate(np.nan, np.inf, 0, count, pairs)

    def statistic(seeds: np.ndarray, chosen: np.ndarray) -> float:
        part = {name: _standard(values[np.ix_(seeds, chosen)]) for name, values in ranked.items()}
        pairs_of = ((middle, ends[0]), (middle, ends[1]), ends)
        first, second, across = (_corrected(part[a], part[b], least=1e-3) for a, b in pairs_of)
        return min(first, second) - across

    every, all_pairs, rng = np.arange(count), np.arange(pairs), np.random.default_rng(0)
    boot = float(np.var([statistic(every, rng.choice(all_pairs, pairs)) for _ in range(n_boot)]))
    without = np.array([statistic(np.delete(every, s), all_pairs) for s in range(count)])  # NaN where that leaves one
    seeds = (count - 1) / count * float(np.sum((without - without.mean()) ** 2))
    return estimate(statistic(every, all_pairs), boot + seeds, count - 1, count, pairs)
