"""lib/reliability.py: the randomisation test, estimates of single pairs, and agreement without noise."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from lib import reliability


def measured(seeds=6, pairs=300, memory=0.3, noise=0.2, rng_seed=0):
    """Alignments of a pool in halves: half of the pairs are memorized by `memory`, the others not at all."""
    rng, truth = np.random.default_rng(rng_seed), np.where(np.arange(pairs) % 2, memory, 0.0)
    parts = []
    for seed in range(seeds):
        member = rng.permutation(np.repeat([1, -1], pairs // 2))
        outside = rng.normal(0, noise, pairs)
        inside = truth + rng.normal(0, noise, pairs)
        parts.append(pd.DataFrame({"seed": seed, "pair_id": range(pairs), "member": member}))
        parts[-1] = parts[-1].assign(contrast_in=inside, contrast_out=outside, clipmem=inside - outside)
    return pd.concat(parts, ignore_index=True).assign(corruption="clean", share_swapped=0.0)


def test_randomisation_finds_what_is_memorized_and_is_exact_where_nothing_is():
    found = reliability.randomisation(measured(seeds=1), draws=500)
    real, chance = found.loc[found["draw"] == 0, "mean"].item(), found.loc[found["draw"] > 0, "mean"]
    table = measured(seeds=1)
    assert real == pytest.approx(table["clipmem"].mean()) and (chance >= real).mean() == 0
    ranks = []
    for i in range(200):  # under the null every rank of the real decision is equally likely
        one = reliability.randomisation(measured(seeds=1, pairs=40, memory=0.0, rng_seed=i), draws=99)["mean"]
        ranks.append((one.iloc[1:] >= one.iloc[0]).mean())
    assert np.mean(np.array(ranks) <= 0.05) == pytest.approx(0.05, abs=0.04) and np.mean(ranks) == pytest.approx(
        0.5, abs=0.06
    )


def test_single_pairs_are_means_with_honest_errors_and_few_false_discoveries():
    table = measured()
    found = reliability.per_pair(table).set_index("pair_id")
    by_hand = table.groupby("pair_id")[["contrast_in", "contrast_out", "clipmem"]].mean()
    assert np.allclose(found[["inside", "outside", "clipmem"]], by_hand)
    true = np.where(found.index % 2, 0.3, 0.0)
    assert np.std(found["clipmem"] - true) == pytest.approx(found["error"].iloc[0], rel=0.15)
    assert (true[found["sure"]] == 0).mean() < 0.12 and found.loc[true > 0, "sure"].mean() > 0.5


def test_reliability_is_what_another_set_of_seeds_would_agree_to():
    many = measured(seeds=40)
    single = reliability.reliability(many)
    wide = many.pivot(index="pair_id", columns="seed", values="clipmem")
    naive = [spearmanr(wide[a], wide[b])[0] for a in range(8) for b in range(8, 16)]
    assert single == pytest.approx(np.mean(naive), abs=0.03)
    halves = [wide[list(range(start, start + 10))].mean(axis=1) for start in (0, 10)]
    assert reliability.reliability(many, seeds=10) == pytest.approx(spearmanr(*halves)[0], abs=0.06)
    assert np.isnan(reliability.reliability(many[many["seed"] == 0]))


def test_correlation_is_freed_from_noise():
    table = measured(seeds=8)
    shuffled = table["pair_id"].max() - table["pair_id"]
    table["other"] = 2 * table["clipmem"].where(table["pair_id"] % 2 == 1, -0.5) + np.random.default_rng(1).normal(
        0, 0.3, len(table)
    )
    raw = spearmanr(table["clipmem"], table["other"])[0]
    freed = reliability.correlation(table, "clipmem", "clipmem")
    assert freed == pytest.approx(1) and raw < 0.9
    noise = table.assign(nothing=np.random.default_rng(2).normal(size=len(table)), mirrored=shuffled)
    assert abs(reliability.correlation(noise, "clipmem", "mirrored")) < 0.2


def test_between_is_above_0_for_a_score_that_resembles_both_ends():
    rng, rows = np.random.default_rng(0), []
    first, second = rng.normal(size=(2, 200))
    for seed in range(5):
        noise = rng.normal(0, 0.5, (3, 200))
        values = {"left": first + noise[0], "right": second + noise[1], "middle": first + second + noise[2]}
        rows.append(pd.DataFrame({"seed": seed, "pair_id": range(200), **values}))
    table = pd.concat(rows)
    found, reverse = (
        reliability.between(table, *names, n_boot=50)
        for names in (("middle", ("left", "right")), ("left", ("middle", "right")))
    )
    assert found.low > 0.3 and found.low < found.value < found.high and reverse.high < 0


def test_membership_is_the_area_between_seen_and_unseen():
    table = measured(seeds=1).rename(columns={"contrast_in": "similarity_in", "contrast_out": "similarity_out"})
    values = np.concatenate([table["similarity_in"], table["similarity_out"]])
    expected = roc_auc_score(np.repeat([1, 0], len(table)), values) - 0.5
    assert reliability.membership(table).value == pytest.approx(expected)
