"""Estimates with intervals, the range of the noise floor, and verdicts, from tables with one row per seed and pair.

How an interval is made. Two things are random: which pairs were drawn, and the training seed. Every seed scores the
same pairs; a statistic is computed for each seed, then averaged.

- Pairs: bootstrap, percentile limits. A resample of pairs serves all seeds and keeps the size of every group.
- Seeds: t-interval, S - 1 degrees of freedom. A bootstrap of three seeds is too narrow: it has 10 distinct resamples.
- Both: the distances from the value to either limit add in squares (Zou & Donner 2008, Statistics in Medicine 27:1693,
  "MOVER"). What varies with seed and pair together counts twice, as in any crossed bootstrap (Owen 2007, Annals of
  Applied Statistics 1:386), so the interval is rather too wide; a test measures its coverage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import minimize
from scipy.special import log_softmax

VERDICTS = ("reproduced", "direction only", "not reproduced", "not testable at this scale")
MIN_SEEDS = 2  # the interval of one seed is over pairs only and says nothing about another training run
MIN_PAIRS = 20  # the percentile interval of a mean is a tenth too narrow with 20 pairs, and a fifth with 10
LEVEL = 0.95  # of every interval; the claims of the notebooks name it
N_BOOT = 1000  # resamples: another choice of them would move a limit by about 2 % of the interval's width
BLOCK = 250  # resamples held in memory at once: 20 MB for 10,000 pairs, whatever n_boot is


@dataclass(frozen=True)
class Estimate:
    """A value, its interval, the number of training seeds, and `n`: the number of pairs (where groups are compared, in
    the smallest), each counted once however many seeds scored it. From `over_seeds`: what its caller counted."""

    value: float
    low: float
    high: float
    seeds: int
    n: int


@dataclass(frozen=True)
class Panel:
    """The scores that one seed gave P pairs, `[P]` per column, and the group of each pair `[P]`."""

    columns: dict[str, np.ndarray]
    group: np.ndarray


# A panel and weights [B, P], how often resample b drew pair p -> the statistic of each resample [B]
Statistic = Callable[[Panel, np.ndarray], np.ndarray]


def panels(table: pd.DataFrame, columns: Sequence[str], grouped: bool = False) -> list[Panel]:
    """Return a panel per seed, grouped by corruption or all one group. Raise ValueError when a score is missing."""
    absent = {"seed", "pair_id", *columns} - set(table.columns)
    if absent or table.empty:
        raise ValueError(f"the scores have no {', '.join(sorted(absent)) or 'rows'}: pass one row per seed and pair")
    pairs = table.drop_duplicates("pair_id").set_index("pair_id").sort_index()
    if len(table) != len(pairs) * table["seed"].nunique() or table.duplicated(["seed", "pair_id"]).any():
        raise ValueError("every seed must score the same pairs, each once: filter the table by pair, not by row")
    for name in columns:
        if missing := np.sum(~np.isfinite(table[name].to_numpy(float))):
            raise ValueError(f"column {name} has {missing} missing or infinite scores: drop those pairs in every seed")
    groups = pairs["corruption"].to_numpy() if grouped else np.full(len(pairs), "all")
    by_seed = [part.set_index("pair_id").loc[pairs.index] for _, part in table.groupby("seed")]
    return [Panel({name: part[name].to_numpy(float) for name in columns}, groups) for part in by_seed]


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
    seeds, tail = panels(table, columns, grouped), (1 - LEVEL) / 2
    groups = seeds[0].group
    per_seed = np.array([statistic(one, np.ones((1, len(groups))))[0] for one in seeds])
    value = float(per_seed.mean())
    boot = np.concatenate([np.mean([statistic(one, w) for one in seeds], axis=0) for w in resamples(groups, n_boot)])
    low, high = np.quantile(boot, [tail, 1 - tail])
    t = stats.t.ppf(1 - tail, len(seeds) - 1)
    by_seed = t * per_seed.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    below, above = np.hypot(by_seed, max(value - low, 0.0)), np.hypot(by_seed, max(high - value, 0.0))
    n = int(pd.Series(groups).value_counts().min())
    return Estimate(value, float(value - below), float(value + above), len(seeds), n)


def over_seeds(values: Sequence[float] | np.ndarray, n: int) -> Estimate:
    """Return the mean of one value per seed with its t-interval, infinite for one seed; `n`: see `Estimate`."""
    per_seed = np.asarray(values, float)
    reach = np.inf if len(per_seed) < 2 else stats.sem(per_seed) * stats.t.ppf((1 + LEVEL) / 2, len(per_seed) - 1)
    value = float(per_seed.mean())
    return Estimate(value, float(value - reach), float(value + reach), len(per_seed), n)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def mean(table: pd.DataFrame, score: str = "clipmem", n_boot: int = N_BOOT) -> Estimate:
    """Estimate the mean score of the table's pairs."""
    return interval(lambda one, weights: _mean(one.columns[score], weights), table, [score], n_boot=n_boot)


def means(table: pd.DataFrame, by: str, score: str = "clipmem", n_boot: int = N_BOOT) -> pd.DataFrame:
    """Return the mean score for each value of column `by`: `by`, value, low, high, seeds, n."""
    return pd.DataFrame({by: name, **vars(mean(part, score, n_boot))} for name, part in table.groupby(by))


def _only(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    present = set(table.get("corruption", ()))
    if absent := set(names) - present:
        raise ValueError(f"no pair has corruption = {min(absent)!r}; there are {sorted(present)}")
    return table[table["corruption"].isin(names)]


def difference(table: pd.DataFrame, score="clipmem", high="swapped", low="clean", n_boot=N_BOOT) -> Estimate:
    """Estimate the mean score of the pairs with corruption `high` minus that of the pairs with `low`."""

    def statistic(one: Panel, weights: np.ndarray) -> np.ndarray:
        above, below = weights * (one.group == high), weights * (one.group == low)
        return _mean(one.columns[score], above) - _mean(one.columns[score], below)

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


def _finds_swapped(score: str, sign: int) -> Statistic:
    return lambda one, weights: roc_auc(sign * one.columns[score], one.group == "swapped", weights)


def detect(table: pd.DataFrame, score: str = "clipmem", sign: int = 1, n_boot: int = N_BOOT) -> Estimate:
    """Estimate how well `sign * score` finds swapped pairs among clean ones: ROC AUC, .5 by chance."""
    found = interval(_finds_swapped(score, sign), _only(table, "swapped", "clean"), [score], True, n_boot)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def gain(table: pd.DataFrame, signs: Mapping[str, int], n_boot: int = N_BOOT) -> tuple[str, Estimate]:
    """Return the best of the scores after the first, and by how much the ROC AUC of the first exceeds its own.

    Both use the same seeds and resamples. The best is chosen on this same data, which is in its favour. `signs`: +1
    where a high score is suspicious, -1 where a low one is, decided before looking: {"clipmem": 1, "similarity_g": -1}.
    """
    first, *others = signs
    best = max(others, key=lambda score: detect(table, score, sign=signs[score], n_boot=1).value)
    ours, theirs = (_finds_swapped(score, signs[score]) for score in (first, best))
    chosen = _only(table, "swapped", "clean")
    return best, interval(lambda one, w: ours(one, w) - theirs(one, w), chosen, [first, best], True, n_boot)


def trend(table: pd.DataFrame, score: str = "clipmem", x: str = "share_swapped", n_boot: int = N_BOOT) -> Estimate:
    """Estimate Spearman's rank correlation of `score` and `x`."""

    def statistic(one: Panel, weights: np.ndarray) -> np.ndarray:
        share = weights / weights.sum(axis=1, keepdims=True)
        ranked = [ranks(one.columns[name], weights) for name in (x, score)]
        a, b = (rank - (rank * share).sum(axis=1, keepdims=True) for rank in ranked)
        covariance, var_a, var_b = ((share * product).sum(axis=1) for product in (a * b, a * a, b * b))
        return covariance / np.sqrt(var_a * var_b)

    return interval(statistic, table, [score, x], n_boot=n_boot)


def noise_range(table: pd.DataFrame) -> tuple[float, float]:
    """Return the limits of the middle 95 % of the noise floor: scores of two models with the same training data."""
    low, high = table["noise_floor"].dropna().quantile([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def verdict(estimate: Estimate, claim: str = "above") -> str:
    """Judge "the statistic lies above (or below) 0", by rules fixed before looking.

    - 'not testable at this scale': a limit is not finite, seeds < MIN_SEEDS, or n < MIN_PAIRS (`Estimate` defines n);
    - 'reproduced': the whole interval lies on the claimed side of 0;
    - 'direction only': the value does, the interval does not;
    - 'not reproduced': the value does not.
    """
    if claim not in ("above", "below"):
        raise ValueError(f"claim is {claim!r}; it must be 'above' or 'below'")
    sign = 1 if claim == "above" else -1
    value, limit = sign * estimate.value, sign * (estimate.low if claim == "above" else estimate.high)
    if estimate.seeds < MIN_SEEDS or estimate.n < MIN_PAIRS or not np.isfinite([limit, value]).all():
        return "not testable at this scale"
    if limit > 0:
        return "reproduced"
    return "direction only" if value > 0 else "not reproduced"


# --- for linear probes ---


def logistic(train: np.ndarray, y: np.ndarray, strength: float, test: np.ndarray) -> np.ndarray:
    """Return the classes `[M]` that scikit-learn's LogisticRegression(C=1/strength) predicts, in a tenth of its time.

    Embeddings lie in a narrow cone, where L-BFGS takes hundreds of steps; in coordinates in which the curvature is near
    1 in every direction it takes 20. The penalty is stretched along, so the minimum is the same.
    """
    classes, y = np.unique(y, return_inverse=True)
    values, vectors = np.linalg.eigh(train.T @ train)
    stretch = np.sqrt(np.maximum(values, 0) / len(classes) + strength)
    x = np.hstack([train @ (vectors / stretch), np.full((len(train), 1), np.sqrt(len(classes) / len(train)))])
    penalty = np.append(strength / stretch**2, 0)[:, None]  # none on the intercept
    truth = np.eye(len(classes))[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, len(classes))
        log_p = log_softmax(x @ weights, axis=1)
        value = 0.5 * (penalty * weights**2).sum() - (truth * log_p).sum()
        return float(value), (x.T @ (np.exp(log_p) - truth) + penalty * weights).ravel()

    # a gradient of .01 is that of a hundredth of an image: further steps move few predictions, in either direction
    found = minimize(loss, np.zeros(x.shape[1] * len(classes)), jac=True, method="L-BFGS-B", options={"gtol": 1e-2})
    weights = found.x.reshape(-1, len(classes))
    return classes[(test @ (vectors / stretch) @ weights[:-1] + weights[-1] * x[0, -1]).argmax(axis=1)]
