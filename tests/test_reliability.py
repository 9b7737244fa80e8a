"""lib/stats.py: estimates of single pairs, how reliable they are, and agreement without noise."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from lib import stats


def measured(seeds=6, pairs=300, memory=0.3, noise=0.2):
    """Alignments of a pool in halves: half of the pairs are memorized by `memory`, the others not at all."""
    rng, truth = np.random.default_rng(0), np.where(np.arange(pairs) % 2, memory, 0.0)
    parts = []
    for seed in range(seeds):
        saw, did_not = truth + rng.normal(0, noise, pairs), rng.normal(0, noise, pairs)
        scores = {"contrast_in": saw, "contrast_out": did_not, "clipmem": saw - did_not}
        parts.append(pd.DataFrame({"seed": seed, "pair_id": range(pairs), "corruption": "clean", **scores}))
    return pd.concat(parts, ignore_index=True)


def test_single_pairs_are_means_with_honest_errors_and_few_false_discoveries():
    table = measured()
    found = stats.per_pair(table).set_index("pair_id")
    by_hand = table.groupby("pair_id")[["contrast_in", "contrast_out", "clipmem"]].mean()
    assert np.allclose(found[["in", "out", "clipmem"]], by_hand)
    true = np.where(found.index % 2, 0.3, 0.0)
    assert np.std(found["clipmem"] - true) == pytest.approx(found["error"].iloc[0], rel=0.15)
    assert (true[found["significant"]] == 0).mean() < 0.12 and found.loc[true > 0, "significant"].mean() > 0.5


def test_reliability_is_what_another_set_of_seeds_would_agree_to():
    many = measured(seeds=40)
    single = stats.reliability(many)
    wide = many.pivot(index="pair_id", columns="seed", values="clipmem")
    naive = [spearmanr(wide[a], wide[b])[0] for a in range(8) for b in range(8, 16)]
    assert single == pytest.approx(np.mean(naive), abs=0.03)
    halves = [wide[list(range(start, start + 10))].mean(axis=1) for start in (0, 10)]
    assert stats.reliability(many, seeds=10) == pytest.approx(spearmanr(*halves)[0], abs=0.06)
    assert np.isnan(stats.reliability(many[many["seed"] == 0]))


def test_correlation_is_freed_from_noise():
    table, rng = measured(seeds=8), np.random.default_rng(1)
    table["other"] = 2 * table["clipmem"] + rng.normal(0, 0.5, len(table))
    table["nothing"] = rng.normal(size=len(table))
    raw, freed = (stats.correlation(table, "clipmem", "other", corrected) for corrected in (False, True))
    assert freed == pytest.approx(1, abs=0.05) and raw < 0.5
    assert stats.correlation(table, "clipmem", "clipmem") == pytest.approx(1)
    assert abs(stats.correlation(table, "clipmem", "nothing", corrected=False)) < 0.1
