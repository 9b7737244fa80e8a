"""lib/stats.py: fast forms against scikit-learn and scipy, coverage, the multibootstrap, verdicts, and single pairs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, cpu_count, delayed
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
    assert ours["auc"] == stats.detect(table[::-1], "loss", sign=-1, n_boot=50), "the order of rows does not matter"


def wrong_verdicts(seeds, number, pairs=80, n_boot=40) -> dict[str, bool]:
    """Draw data in which the truth is exactly 0, or exactly the margin; return which kinds of test say otherwise."""
    rng, seed_sd = np.random.default_rng([seeds, number]), (0.0, 0.05, 0.15)[number % 3]
    swapped, share = np.arange(pairs) < pairs / 4, np.arange(pairs) % 5 / 4

    def noise(where=1.0):  # of pairs, of both, and of seeds, which changes some pairs more than others
        by_pair = rng.normal(0, 0.3, pairs) + rng.normal(0, 0.2, (seeds, pairs))
        return by_pair + where * rng.normal(0, seed_sd, (seeds, 1))

    def ratio(one, weights):
        return np.divide(*(stats.weighted_mean(one[name].to_numpy(), weights) for name in ("part", "whole")))

    columns = {"a": noise(), "b": noise(), "share": share + np.zeros((seeds, 1)), "by_share": noise(share)}
    columns |= {name: columns["b"] + 0.2 * swapped + noise(swapped) for name in ("one", "other")}
    columns |= {"whole": 0.4 + (whole := noise()), "part": 0.06 + 0.15 * whole + 0.3 * noise()}
    table = scores(seeds, pairs, 0.0, seed_sd, [seeds, number, 1]).astype({"corruption": object})  # faster than text
    table = table.assign(**{name: values.ravel() for name, values in columns.items()}).copy()  # in one block
    a, b = (stats.mean(table, name, n_boot) for name in "ab")
    logs = [stats.logarithm(replace(one, value=one.value + 0.4)) for one in (a, b)]  # as if all scores were higher
    r, angles = [stats.ranked(table, name) for name in "ab"], np.arcsin([9 / 13, 9 / 26])
    truth = 6 / np.pi / (pairs + 1) * (angles[0] + (pairs - 2) * angles[1])  # rank correlation of seeds (Moran 1948)
    found = {
        "mean": a,
        "difference": stats.difference(table, n_boot=n_boot),
        "difference of AUC": stats.gain(table, {"one": 1, "other": 1}, n_boot)[1],
        "trend": stats.trend(table, "by_share", "share", n_boot),
        "over seeds": stats.over_seeds(rng.normal(0, 0.05 + seed_sd, seeds), pairs),
        "difference of logarithms": stats.combine([-1, 1], logs),
        "weaker": stats.weaker(stats.estimate(9.0, b.error**2, b.df, seeds, pairs), a),
        "reliability": stats.of_rankings(lambda x: stats.across(x, x) - truth, r[0], n_boot=n_boot),
        "corrected": stats.of_rankings(stats.corrected, *r, n_boot=n_boot),
    }
    wrong = {kind: stats.verdict(one)[0] in ("reproduced", "contradicted") for kind, one in found.items()}
    ratios = stats.interval(ratio, table, ["part", "whole"], n_boot=n_boot)
    wrong["ratio, within"] = stats.verdict(ratios, "within", 0.15)[0] == "reproduced"
    lower = stats.combine([-1, 1], [replace(logs[0], value=logs[0].value - 0.5), logs[1]])
    return wrong | {"logarithms, within": stats.verdict(lower, "within", 0.5)[0] == "reproduced"}


@pytest.mark.parametrize("seeds", [5, 10])
def test_verdicts_are_rarely_wrong_where_the_truth_is_exactly_0_or_the_margin(seeds):
    draws = Parallel(n_jobs=cpu_count())(delayed(wrong_verdicts)(seeds, number) for number in range(2000))
    wrong = pd.DataFrame(draws).mean()
    assert wrong.max() <= 0.07 and len(wrong) == 11, wrong  # 5 %, and four standard errors of the simulation


def test_intervals_agree_with_the_multibootstrap():
    table = scores(seeds=12, pairs=200, seed_sd=0.05)
    wide = table.pivot(index="seed", columns="pair_id", values="clipmem").to_numpy()
    rng, draws = np.random.default_rng(0), []
    for _ in range(2000):  # Sellam et al. 2022: seeds and pairs are resampled together, the pairs within their group
        pairs = np.concatenate([rng.integers(0, 50, 50), rng.integers(50, 200, 150)])
        chosen = wide[np.ix_(rng.integers(0, 12, 12), pairs)].mean(axis=0)
        draws.append(chosen[:50].mean() - chosen[50:].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    ours = stats.difference(table)
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.15)
    assert ours.low == pytest.approx(low, abs=0.15 * (high - low))


def test_what_is_detectable_is_found_as_often_as_it_says():
    reach = stats.difference(scores(seeds=6, seed_sd=0.05, rng_seed=1), n_boot=200).smallest_detectable
    found = [stats.difference(scores(6, effect=reach, seed_sd=0.05, rng_seed=i), n_boot=60).low > 0 for i in range(150)]
    assert 0.6 < np.mean(found) < 0.95


def test_seeds_that_disagree_widen_the_interval_and_n_counts_pairs_of_the_smallest_group_once():
    calm, wild = (stats.difference(scores(seed_sd=sd), n_boot=200) for sd in (0.0, 0.5))
    assert wild.high - wild.low > 2 * (calm.high - calm.low)
    single = stats.difference(scores(seeds=1), n_boot=200)
    assert (single.seeds, single.n) == (1, 25) and (calm.seeds, calm.n) == (3, 25)
    means = stats.means(scores(), "corruption", n_boot=20)
    assert means[["corruption", "n"]].to_numpy().tolist() == [["swapped", 25], ["clean", 75]]


def test_over_seeds_is_scipys_t_interval_and_one_seed_has_none():
    values = np.random.default_rng(0).normal(0.3, 0.1, 4)
    found, single = stats.over_seeds(values, 77), stats.over_seeds([0.3], 77)
    low, high = reference.t.interval(0.95, 3, loc=values.mean(), scale=reference.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert (found.seeds, found.n, found.over) == (4, 77, "seeds")
    assert (single.value, single.low, single.high, single.seeds) == (0.3, -np.inf, np.inf, 1)


def test_gain_compares_with_the_best_baseline():
    table = scores().assign(weak=lambda t: -0.2 * t.clipmem + t.noise_floor)
    best, gained = stats.gain(table, {"clipmem": 1, "noise_floor": 1, "weak": -1}, n_boot=100)
    value = {s: stats.detect(table, s, sign=g, n_boot=2).value for s, g in [("clipmem", 1), ("weak", -1)]}
    assert best == "weak" and gained.value == pytest.approx(value["clipmem"] - value["weak"])


def test_tpr_at_fpr_by_hand():
    values, positive = np.array([9, 8, 7, 6, 5, 4, 3.0]), np.array([1, 0, 1, 1, 0, 0, 0], bool)
    for fpr, share in ((0.1, 1 / 3), (0.25, 1.0), (0.9, 1.0)):
        assert stats.tpr_at_fpr(fpr, values, positive, np.ones((1, 7))).tolist() == pytest.approx([share])
    table = scores(seeds=1)
    swapped, clean = (table[table.corruption == name].clipmem for name in ("swapped", "clean"))
    assert stats.detect(table, fpr=0.05, n_boot=2).value == (swapped > np.sort(clean)[-4]).mean()  # 3 of 75


def test_ties_are_above_the_threshold_together_whatever_the_order_of_the_rows():
    values, positive, weights = drawn(np.random.default_rng(3))
    above = values[:, None] >= values  # [pair, threshold]
    hits, wrong = (weights[:, mask] @ above[mask] for mask in (positive, ~positive))
    expected = (hits * (wrong <= 0.2 * wrong.max(axis=1, keepdims=True))).max(axis=1) / hits.max(axis=1)
    for order in (np.argsort(positive), np.argsort(~positive)):  # positives last, and first
        assert (stats.tpr_at_fpr(0.01, np.ones(60), positive[order], weights) == 0).all(), "a constant finds nothing"
        found = stats.tpr_at_fpr(0.2, values[order], positive[order], weights[:, order])
        assert found == pytest.approx(expected)


WITHIN = {0: "reproduced", 0.105: "reproduced", 0.11: "inconclusive", 0.12: "inconclusive", 0.32: "contradicted"}
ABOVE = {0: "negligible", 0.105: "negligible", 0.11: "inconclusive", 0.12: "reproduced", 0.32: "reproduced"}


@pytest.mark.parametrize("value", WITHIN)
def test_verdicts_with_a_margin_are_two_one_sided_t_tests(value, margin=0.2):
    sample = np.random.default_rng(0).normal(size=9)
    sample = value + 0.15 * (sample - sample.mean()) / sample.std(ddof=1)  # a standard error of .05
    found, mirrored = (stats.over_seeds(one, 50) for one in (sample, -sample))
    plain, beyond = (reference.ttest_1samp(sample, mean).pvalue for mean in (0, margin))
    small = max(reference.ttest_1samp(one, margin, alternative="less").pvalue for one in (sample, -sample))
    low, high = reference.t.interval(0.9, 8, value, 0.05)
    assert (WITHIN[value] == "reproduced") == (small <= 0.05) == (max(-low, high) <= margin)
    expected = (WITHIN[value], "", pytest.approx(beyond if WITHIN[value] == "contradicted" else small))
    assert stats.verdict(found, "within", margin) == stats.verdict(mirrored, "within", margin) == expected
    expected = (ABOVE[value], "", pytest.approx(small if ABOVE[value] == "negligible" else plain))
    assert stats.verdict(found, "above", margin) == stats.verdict(mirrored, "below", margin) == expected
    without = ABOVE[value].replace("negligible", "inconclusive")
    assert stats.verdict(found)[0] == without == stats.verdict(mirrored, "below")[0]
    assert stats.verdict(mirrored)[0] == without.replace("reproduced", "contradicted")


def test_what_cannot_be_tested_says_why():
    found = stats.Estimate(0.2, 0.1, 0.3, 3, 50, 0.02, 0.1, 0.04, 5.0)
    for few in ({"seeds": 1}, {"n": 19}, {"value": np.nan, "low": np.nan, "high": np.nan}):
        for side in ("above", "within"):
            outcome, reason, _ = stats.verdict(replace(found, **few), side, 0.2)
            assert outcome == "not testable" and reason


def test_errors_name_what_is_wrong():
    table = scores()
    gap = table.assign(clipmem=table.clipmem.where(table.index != 5))
    for wrong, said in ((table[1:], "same pairs"), (gap, "column clipmem has 1 missing")):
        with pytest.raises(ValueError, match=said):
            stats.mean(wrong)
    with pytest.raises(ValueError, match="no pair has corruption = 'vague'"):
        stats.difference(table, high="vague")


def test_an_interval_moves_with_its_scores():
    first = stats.mean(scores(), n_boot=50)
    for scale, shift in ((0.1, 3.0), (10.0, -3.0)):
        moved = stats.mean(scores().assign(clipmem=lambda t, a=scale, b=shift: a * t.clipmem + b), n_boot=50)
        expected = [scale * limit + shift for limit in (first.low, first.value, first.high)]
        assert [moved.low, moved.value, moved.high] == pytest.approx(expected)


def measured(seeds, pairs=300, memory=0.3, noise=0.2):
    truth = np.where(np.arange(pairs) % 2, memory, 0.0)  # half of the pairs are memorized
    values = truth + np.random.default_rng(0).normal(0, noise * 2**0.5, (seeds, pairs))
    wide = pd.DataFrame(values).rename_axis("seed").rename_axis("pair_id", axis=1)
    return wide.stack().rename("clipmem").reset_index()


def test_reliability_is_what_another_set_of_seeds_would_agree_to():
    many = measured(seeds=40)
    single = stats.reliability(many)
    wide = many.pivot(index="pair_id", columns="seed", values="clipmem")
    naive = [reference.spearmanr(wide[a], wide[b])[0] for a in range(8) for b in range(8, 16)]
    assert single == pytest.approx(np.mean(naive), abs=0.03)
    halves = [wide[list(range(start, start + 10))].mean(axis=1) for start in (0, 10)]
    assert stats.reliability(many, seeds=10) == pytest.approx(reference.spearmanr(*halves)[0], abs=0.06)
    assert np.isnan(stats.reliability(many[many["seed"] == 0]))


def test_rankings_take_three_seeds_and_the_weaker_of_two_estimates_is_the_less_sure_one():
    rows = stats.ranked(measured(seeds=3), "clipmem")
    two, three = (stats.of_rankings(stats.across, rows[:s], rows[:s], n_boot=20) for s in (2, 3))
    assert three.value == pytest.approx(np.mean([rows[s] @ rows[s - 1] for s in range(3)]))
    assert np.isinf([two.low, two.high]).all() and np.isfinite([three.low, three.high]).all()
    few, many = stats.estimate(2.2, 1.0, 4, 5, 50), stats.estimate(2.1, 1.0, 1000, 5, 50)  # p = .09 and .04
    assert stats.weaker(many, few) == stats.weaker(few, many) == few
