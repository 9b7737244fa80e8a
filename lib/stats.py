"""Estimates with intervals, and verdicts, from tables with one row per seed and pair (or test item).

How an interval is made. Two things are random: which pairs were drawn, and the training seed, which also draws the
halves of the pool. Every seed scores the same pairs, a statistic is computed for each seed, then averaged. Its variance
has three components: pairs, seeds, and their interaction (what is peculiar to a pair in one training).

- A bootstrap over pairs, in which a resample serves all seeds and keeps the size of every group, gives pairs +
  interaction / S. The same for each seed alone gives pairs + interaction, and so tells the two apart.
- The spread of the seeds, divided by S, holds seeds / S + interaction / S; the latter is subtracted, as it is in the
  first part already, and what is left, at least 0, is added.
- The interval is a t-interval with Satterthwaite's degrees of freedom. A test measures its coverage, and compares it
  with the multibootstrap (Sellam et al. 2022, arXiv 2106.16163), which resamples seeds and pairs together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

MIN_SEEDS = 2  # the interval of one seed is over pairs only and says nothing about another training run
MIN_PAIRS = 20  # an interval of a mean is a tenth too narrow with 20 pairs, and a fifth with 10
LEVEL, POWER = 0.95, 0.8  # of every interval; and the chance with which `Estimate.detectable` would be found
N_BOOT = 1000  # resamples: another choice of them would move a limit by about 2 % of the interval's width
BLOCK = 250  # resamples held in memory at once: 20 MB for 10,000 pairs, whatever n_boot is


@dataclass(frozen=True)
class Estimate:
    """A value, its interval, the number of training seeds, and `n`: the number of pairs (where groups are compared, in
    the smallest), each counted once however many seeds scored it. `p`: two-sided, of 0; `detectable`: the true value
    that would be told from 0 with a chance of POWER."""

    value: float
    low: float
    high: float
    seeds: int
    n: int
    p: float
    detectable: float


def estimate(value: float, variance: float, df: float, seeds: int, n: int) -> Estimate:
    """Return the Estimate of a value with a variance that is known with `df` degrees of freedom."""
    if not (df > 0 and np.isfinite(variance)):  # one seed has no spread
        return Estimate(value, -np.inf, np.inf, seeds, n, 1.0, np.inf)
    error, t = max(variance, 1e-300) ** 0.5, stats.t(df)
    reach = float(t.ppf((1 + LEVEL) / 2) * error)
    p, detectable = float(2 * t.sf(abs(value) / error)), float(reach + t.ppf(POWER) * error)
    return Estimate(value, value - reach, value + reach, seeds, n, p, detectable)


# The rows of one seed, P pairs, and weights [B, P], how often resample b drew pair p -> the statistic of each resample
Statistic = Callable[[pd.DataFrame, np.ndarray], np.ndarray]


def by_seed(table: pd.DataFrame, columns: Sequence[str]) -> list[pd.DataFrame]:
    """Return the rows of each seed, in the order of the pairs. Raise ValueError when a score is missing."""
    absent = {"seed", "pair_id", *columns} - set(table.columns)
    if absent or table.empty:
        raise ValueError(f"the scores have no {', '.join(sorted(absent)) or 'rows'}: pass one row per seed and pair")
    expected = table["pair_id"].nunique() * table["seed"].nunique()
    if len(table) != expected or table.duplicated(["seed", "pair_id"]).any():
        raise ValueError("every seed must score the same pairs, each once: filter the table by pair, not by row")
    for name in columns:
        if missing := np.sum(~np.isfinite(table[name].to_numpy(float))):
            raise ValueError(f"column {name} has {missing} missing or infinite scores: drop those pairs in every seed")
    table = table.astype(dict.fromkeys(columns, float)).sort_values("pair_id")
    return [part for _, part in table.groupby("seed")]


def resamples(group: np.ndarray, n_boot: int) -> Iterator[np.ndarray]:
    """Yield blocks `[<=BLOCK, P]` of bootstrap counts: each group is redrawn with replacement at its own size."""
    rng = np.random.default_rng(0)  # fixed: the same table gives the same interval
    for start in range(0, n_boot, BLOCK):
        weights = np.zeros((min(BLOCK, n_boot - start), len(group)))
        for name in pd.unique(group):
            rows = np.flatnonzero(group == name)
            weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
        yield weights


def interval(
    statistic: Statistic, table: pd.DataFrame, columns: Sequence[str], grouped: bool = False, n_boot: int = N_BOOT
) -> Estimate:
    """Return the mean of `statistic` over the seeds with its interval over seeds and pairs (see the module's head)."""
    seeds = by_seed(table, columns)
    count, groups = len(seeds), seeds[0]["corruption"].to_numpy() if grouped else np.full(len(seeds[0]), "all")
    per_seed = np.array([statistic(one, np.ones((1, len(groups))))[0] for one in seeds])
    blocks = [[statistic(one, weights) for one in seeds] for weights in resamples(groups, n_boot)]
    boot = np.concatenate([np.stack(block) for block in blocks], axis=1)  # [S, B]
    n = int(pd.Series(groups).value_counts().min())
    pairs, within = boot.mean(axis=0).var(), boot.var(axis=1).mean()
    if count < 2:
        return estimate(float(per_seed.mean()), pairs, n - 1, count, n)
    spread, interaction = per_seed.var(ddof=1) / count, max(0.0, (within - pairs) / (count - 1))
    seed = max(0.0, spread - interaction)
    uncertain = pairs**2 / max(1, n - 1) + (spread**2 / (count - 1) if seed else 0.0)
    return estimate(float(per_seed.mean()), pairs + seed, (pairs + seed) ** 2 / max(uncertain, 1e-300), count, n)


def over_seeds(values: Sequence[float] | np.ndarray, n: int) -> Estimate:
    """Return the mean of one value per seed with its t-interval, infinite for one seed; `n`: what its caller counted,
    such as the units or images behind each value."""
    per_seed, count = np.asarray(values, float), len(values)
    variance = per_seed.var(ddof=1) / count if count > 1 else np.inf
    return estimate(float(per_seed.mean()), variance, count - 1, count, n)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def mean(table: pd.DataFrame, score: str = "clipmem", n_boot: int = N_BOOT) -> Estimate:
    """Estimate the mean score of the table's pairs."""
    return interval(lambda one, weights: _mean(one[score].to_numpy(), weights), table, [score], n_boot=n_boot)


def means(table: pd.DataFrame, by: str, score: str = "clipmem", n_boot: int = N_BOOT) -> pd.DataFrame:
    """Return the mean score for each value of column `by`: `by` and the fields of Estimate."""
    return pd.DataFrame({by: name, **vars(mean(part, score, n_boot))} for name, part in table.groupby(by, sort=False))


def _only(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    present = set(table.get("corruption", ()))
    if absent := set(names) - present:
        raise ValueError(f"no pair has corruption = {min(absent)!r}; there are {sorted(present)}")
    return table[table["corruption"].isin(names)]


def difference(table: pd.DataFrame, score="clipmem", high="swapped", low="clean", n_boot=N_BOOT) -> Estimate:
    """Estimate the mean score of the pairs with corruption `high` minus that of the pairs with `low`."""

    def statistic(one: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        above, below = (weights * (one["corruption"] == name).to_numpy() for name in (high, low))
        return _mean(one[score].to_numpy(), above) - _mean(one[score].to_numpy(), below)

    return interval(statistic, _only(table, high, low), [score], grouped=True, n_boot=n_boot)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mid-ranks `[B, P]` of values `[P]`, where value p occurs `weights[b, p]` times; ties share one."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])  # where a run of equal values begins
    ties = np.add.reduceat(weights[:, order], first, axis=1)
    middle = np.cumsum(ties, axis=1) - ties / 2 + 0.5
    result = np.empty_like(weights)
    result[:, order] = np.repeat(middle, np.diff(np.r_[first, len(values)]), axis=1)
    return result


def roc_auc(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve `[B]` (Mann-Whitney form) of values `[P]`; `positive` is bool `[P]`."""
    hits, misses = weights[:, positive].sum(axis=1), weights[:, ~positive].sum(axis=1)
    rank_sum = (ranks(values, weights) * weights)[:, positive].sum(axis=1)
    return (rank_sum - hits * (hits + 1) / 2) / (hits * misses)


def hits_at(rate: float, values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of the positives `[B]` that lie above all but a share `rate` of the negatives; as `roc_auc`."""
    order = np.argsort(-values, kind="stable")
    found, alarms = (np.cumsum(weights[:, order] * mask[order], axis=1) for mask in (positive, ~positive))
    return (found * (alarms <= rate * alarms[:, -1:])).max(axis=1) / found[:, -1]


def detect(
    table: pd.DataFrame, score: str = "clipmem", sign: int = 1, kind: str = "swapped", rate: float = 0, n_boot=N_BOOT
) -> Estimate:
    """Estimate how well `sign * score` finds pairs of a kind among clean ones: ROC AUC, .5 by chance; or, with a
    `rate` of false positives, the share of them that is found at this rate."""

    def statistic(one: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        measure = (lambda *rest: hits_at(rate, *rest)) if rate else roc_auc
        return measure(sign * one[score].to_numpy(), (one["corruption"] == kind).to_numpy(), weights)

    found = interval(statistic, _only(table, kind, "clean"), [score], True, n_boot)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def gain(table: pd.DataFrame, signs: Mapping[str, int], n_boot: int = N_BOOT) -> tuple[str, Estimate]:
    """Return the best of the scores after the first, and by how much the ROC AUC of the first exceeds its own.

    Both use the same seeds and resamples. The best is chosen on this same data, which is in its favour. `signs`: +1
    where a high score is suspicious, -1 where a low one is, decided before looking: {"clipmem": 1, "loss_in": 1}.
    """
    first, *others = signs
    best = max(others, key=lambda score: detect(table, score, sign=signs[score], n_boot=2).value)

    def statistic(one: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        swapped = (one["corruption"] == "swapped").to_numpy()
        ours, theirs = (roc_auc(signs[s] * one[s].to_numpy(), swapped, weights) for s in (first, best))
        return ours - theirs

    return best, interval(statistic, _only(table, "swapped", "clean"), [first, best], True, n_boot)


def trend(table: pd.DataFrame, score: str = "clipmem", x: str = "share_swapped", n_boot: int = N_BOOT) -> Estimate:
    """Estimate Spearman's rank correlation of `score` and `x`."""

    def statistic(one: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        share = weights / weights.sum(axis=1, keepdims=True)
        ranked = [ranks(one[name].to_numpy(), weights) for name in (x, score)]
        a, b = (rank - (rank * share).sum(axis=1, keepdims=True) for rank in ranked)
        covariance, var_a, var_b = ((share * product).sum(axis=1) for product in (a * b, a * a, b * b))
        return covariance / np.sqrt(var_a * var_b)

    return interval(statistic, table, [score, x], n_boot=n_boot)


def verdict(found: Estimate, side: str = "above") -> tuple[str, str]:
    """Judge "the statistic lies above (or below) 0", by rules fixed before looking; return the verdict and a reason.

    - 'not testable': a limit is not finite, seeds < MIN_SEEDS, or n < MIN_PAIRS, as the reason says;
    - 'reproduced': the whole interval lies on the claimed side of 0;
    - 'contradicted': the whole interval lies on the other side;
    - 'inconclusive': it contains 0.
    """
    if side not in ("above", "below"):
        raise ValueError(f"side is {side!r}; it must be 'above' or 'below'")
    if found.seeds < MIN_SEEDS:
        return "not testable", f"{found.seeds} seed is too few: use at least {MIN_SEEDS}"
    if found.n < MIN_PAIRS:
        return "not testable", f"{found.n} pairs are too few: it takes at least {MIN_PAIRS}"
    if not np.isfinite([found.low, found.value, found.high]).all():
        return "not testable", "the interval is not finite"
    if found.low <= 0 <= found.high:
        return "inconclusive", ""
    return ("reproduced" if (found.low > 0) == (side == "above") else "contradicted"), ""


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for all the claims that were tested together (Holm 1979); NaN stays NaN."""
    ordered = pd.Series(np.asarray(p, float)).dropna().sort_values()
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    return adjusted.reindex(range(len(p))).to_numpy()
