"""lib/stats.py: fast forms against scikit-learn and scipy, coverage of the intervals, rules of the verdict."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference
from sklearn.metrics import roc_auc_score

from lib import stats


def scores(seeds=3, pairs=100, effect=0.2, seed_sd=0.05, rng_seed=0) -> pd.DataFrame:
    """Scores with a known mean difference of swapped (a quarter) and clean; noise of pairs, of seeds and of both."""
    rng = np.random.default_rng(rng_seed)
    swapped = np.arange(pairs) < pairs / 4
    matrix = rng.normal(0, 0.3, pairs) + rng.normal(0, 0.2, (seeds, pairs))
    matrix = matrix + swapped * (effect + rng.normal(0, seed_sd, (seeds, 1)))
    table = pd.DataFrame({"seed": np.repeat(np.arange(seeds), pairs), "pair_id": np.tile(np.arange(pairs), seeds)})
    table["corruption"] = np.tile(np.where(swapped, "swapped", "clean"), seeds)
    return table.assign(clipmem=matrix.ravel(), noise_floor=rng.normal(0, 0.1, len(table)))


def drawn(rng, pairs=60, decimals=1):
    values, positive = rng.normal(size=pairs).round(decimals), rng.random(pairs) < 0.3
    return values, positive, rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=4).astype(float)


def test_areas_of_resamples_equal_sklearn_with_ties():
    values, positive, weights = drawn(np.random.default_rng(1))
    for row, auc in zip(weights, stats.roc_auc(values, positive, weights), strict=True):
        assert auc == pytest.approx(roc_auc_score(positive, values, sample_weight=row))


def test_ranks_of_resamples_equal_ranks_of_repeated_values():
    values, _, weights = drawn(np.random.default_rng(2))
    for row, ranks in zip(weights, stats.ranks(values, weights), strict=True):
        times = row.astype(int)
        assert np.allclose(np.repeat(ranks, times), reference.rankdata(np.repeat(values, times)))


def test_values_are_means_over_seeds_of_the_naive_statistic():
    table = scores().assign(share_swapped=lambda t: (t.pair_id % 5) / 4, loss=lambda t: -t.clipmem)
    parts = [part for _, part in table.groupby("seed")]
    groups = [(p[p.corruption == "swapped"].clipmem, p[p.corruption == "clean"].clipmem) for p in parts]
    naive = {
        "difference": [swapped.mean() - clean.mean() for swapped, clean in groups],
        "auc": [roc_auc_score(p.corruption == "swapped", p.clipmem) for p in parts],
        "rank": [reference.spearmanr(p.share_swapped, p.clipmem)[0] for p in parts],
    }
    ours = {
        "difference": stats.difference(table, n_boot=50),
        "auc": stats.detect(table, "loss", sign=-1, n_boot=50),
        "rank": stats.trend(table, n_boot=50),
    }
    for name, per_seed in naive.items():
        assert ours[name].value == pytest.approx(np.mean(per_seed)), name
        assert ours[name].low < ours[name].value < ours[name].high


def test_intervals_cover_the_truth_as_often_as_they_say_or_more():
    hits = [
        (e := stats.difference(scores(seed_sd=0.1, rng_seed=i), n_boot=100)).low <= 0.2 <= e.high for i in range(150)
    ]
    assert np.mean(hits) >= 0.93


def test_seeds_that_disagree_widen_the_interval_and_n_counts_pairs_of_the_smallest_group_once():
    calm, wild = (stats.difference(scores(seed_sd=sd), n_boot=200) for sd in (0.0, 0.5))
    assert wild.high - wild.low > 2 * (calm.high - calm.low)
    single = stats.difference(scores(seeds=1), n_boot=200)
    assert (single.seeds, single.n) == (1, 25) and (calm.seeds, calm.n) == (3, 25)
    assert stats.mean(scores(), n_boot=20).n == 100


def test_over_seeds_is_scipys_t_interval_and_one_seed_has_none():
    values = np.random.default_rng(0).normal(0.3, 0.1, 4)
    found = stats.over_seeds(values, 77)
    low, high = reference.t.interval(0.95, 3, loc=values.mean(), scale=reference.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert (found.seeds, found.n) == (4, 77) and found == stats.over_seeds(pd.Series(values), 77)
    single = stats.over_seeds([0.3], 77)
    assert (single.value, single.low, single.high, single.seeds) == (0.3, -np.inf, np.inf, 1)
    assert stats.verdict(single) == "not testable at this scale"


def test_an_interval_is_repeatable_and_2000_resamples_are_quick():
    table = scores(pairs=600)
    start = time.perf_counter()
    first = stats.detect(table, n_boot=2000)
    assert time.perf_counter() - start < 5
    assert first == stats.detect(table.sample(frac=1, random_state=0), n_boot=2000)


def test_gain_compares_with_the_best_baseline():
    table = scores().assign(weak=lambda t: -0.2 * t.clipmem + t.noise_floor)
    best, gained = stats.gain(table, {"clipmem": 1, "noise_floor": 1, "weak": -1}, n_boot=100)
    value = {s: stats.detect(table, s, sign=g, n_boot=2).value for s, g in [("clipmem", 1), ("weak", -1)]}
    assert best == "weak" and gained.value == pytest.approx(value["clipmem"] - value["weak"])


def test_noise_range_and_means():
    table = scores()
    low, high = stats.noise_range(table)
    assert table.noise_floor.between(low, high).mean() == pytest.approx(0.95, abs=0.02)
    means = stats.means(table, "corruption", n_boot=20)
    assert list(means["corruption"]) == ["clean", "swapped"] and list(means["n"]) == [75, 25]


@pytest.mark.parametrize(
    ("value", "low", "high", "claim", "seeds", "n", "expected"),
    [
        (0.2, 0.1, 0.3, "above", 3, 50, "reproduced"),
        (0.2, -0.1, 0.3, "above", 3, 50, "direction only"),
        (0.2, 0.0, 0.3, "above", 3, 50, "direction only"),
        (-0.2, -0.3, -0.1, "above", 3, 50, "not reproduced"),
        (0.0, -0.3, 0.3, "above", 3, 50, "not reproduced"),
        (-0.2, -0.3, -0.1, "below", 3, 50, "reproduced"),
        (-0.2, -0.3, 0.1, "below", 3, 50, "direction only"),
        (0.2, 0.1, 0.3, "above", 1, 50, "not testable at this scale"),
        (0.2, 0.1, 0.3, "above", 3, 19, "not testable at this scale"),
        (np.nan, np.nan, np.nan, "above", 3, 50, "not testable at this scale"),
    ],
)
def test_verdict_rules(value, low, high, claim, seeds, n, expected):
    assert stats.verdict(stats.Estimate(value, low, high, seeds, n), claim=claim) == expected


def test_errors_name_what_is_wrong():
    table = scores()
    with pytest.raises(ValueError, match="no loss_g"):
        stats.mean(table, "loss_g")
    with pytest.raises(ValueError, match="same pairs"):
        stats.mean(table.iloc[1:])
    with pytest.raises(ValueError, match="column clipmem has 1 missing"):
        stats.mean(table.assign(clipmem=table.clipmem.where(table.index != 5)))
    with pytest.raises(ValueError, match="no pair has corruption = 'clean'"):
        stats.detect(table.drop(columns="corruption"))
    with pytest.raises(ValueError, match="no pair has corruption = 'vague'"):
        stats.difference(table, high="vague")
    with pytest.raises(ValueError, match="'above' or 'below'"):
        stats.verdict(stats.Estimate(0.1, 0.0, 0.2, 3, 50), claim="more")
