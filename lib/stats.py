"""Intervals, nulls and verdicts, from tidy per-pair tables.

How an interval is made. Two things are random: which pairs were drawn, and each seed (weights and batch order); every
seed scores the same pairs (a crossed design). A statistic is computed per seed and averaged over the seeds.

- pairs: bootstrap, one resample of pairs for all seeds, drawn within groups so that group sizes hold; percentiles.
- seeds: with three seeds a bootstrap over seeds is too narrow (it knows 10 distinct resamples), so a t-interval over
  the per-seed values with S - 1 degrees of freedom is used instead.
- both: the two distances from the value to its limits are added in squares (Zou & Donner 2008, Statistics in Medicine
  27:1693, "MOVER"). The seed-by-pair part of the noise counts twice, as in any crossed bootstrap (Owen 2007, Annals of
  Applied Statistics 1:386): the interval errs to the wide side, and a test measures its coverage.
- one seed: pairs only, which says nothing about another training run; `Estimate.text()` says so and `verdict` refuses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

VERDICTS = ("reproduced", "direction only", "not reproduced", "not testable at this scale")
BLOCK = 250  # resamples handled at once, so that memory does not grow with n_boot


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `seeds` training seeds and `n` pairs in the smallest group stand behind it."""

    value: float
    low: float
    high: float
    seeds: int
    n: int

    def text(self, digits: int = 3) -> str:
        note = "" if self.seeds > 1 else ", one seed: interval over pairs only"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]{note}"


@dataclass(frozen=True)
class Panel:
    """The crossed table: one `[S, P]` matrix a column (S seeds, P pairs; one seed: `[P]`), each pair's group `[P]`."""

    columns: dict[str, np.ndarray]
    group: np.ndarray

    def seeds(self) -> "list[Panel]":
        rows = zip(*self.columns.values(), strict=True)
        return [Panel(dict(zip(self.columns, row, strict=True)), self.group) for row in rows]


# one seed of a panel, weights [B, P] (how often each pair was drawn) -> the statistic of every resample [B]
Statistic = Callable[[Panel, np.ndarray], np.ndarray]


def panel(table: pd.DataFrame, columns: Sequence[str], group: str | None = None) -> Panel:
    """Pivot a tidy table (columns seed, pair_id, ...) to matrices; ValueError when a pair or a score is missing."""
    absent = {"seed", "pair_id", *columns, *([group] if group else [])} - set(table.columns)
    if absent or table.empty:
        raise ValueError(f"the scores have no {', '.join(sorted(absent)) or 'rows'}: pass one row a seed and pair")
    pairs = table.drop_duplicates("pair_id").set_index("pair_id").sort_index()
    if len(table) != len(pairs) * table["seed"].nunique() or table.duplicated(["seed", "pair_id"]).any():
        raise ValueError("every seed must score the same pairs, each once: filter the table by pair, not by row")
    wide = {c: table.pivot(index="seed", columns="pair_id", values=c).to_numpy(float) for c in columns}
    for name, matrix in wide.items():
        if not np.isfinite(matrix).all():
            raise ValueError(f"column {name} has {np.sum(~np.isfinite(matrix))} missing or infinite scores")
    return Panel(wide, pairs[group].to_numpy() if group else np.full(len(pairs), "all"))


def resamples(group: np.ndarray, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks `[<=BLOCK, P]` of bootstrap counts: each group is redrawn with replacement at its own size."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_boot, BLOCK):
        weights = np.zeros((min(BLOCK, n_boot - start), len(group)))
        for name in pd.unique(group):
            rows = np.flatnonzero(group == name)
            weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
        yield weights


def interval(
    statistic: Statistic,
    table: pd.DataFrame,
    columns: Sequence[str],
    group: str | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """The mean over seeds of `statistic`, with the interval over seeds and pairs that this module's head explains."""
    data = panel(table, columns, group)
    per_seed = np.array([statistic(one, np.ones((1, len(data.group))))[0] for one in data.seeds()])
    value, seeds, tail = float(per_seed.mean()), len(per_seed), (1 - level) / 2
    draws = resamples(data.group, n_boot, seed)
    boot = np.concatenate([np.mean([statistic(one, weights) for one in data.seeds()], axis=0) for weights in draws])
    low, high = np.quantile(boot, [tail, 1 - tail])
    over_seeds = stats.t.ppf(1 - tail, seeds - 1) * per_seed.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    below, above = np.hypot(over_seeds, max(value - low, 0.0)), np.hypot(over_seeds, max(high - value, 0.0))
    n = int(pd.Series(data.group).value_counts().min())
    return Estimate(value, float(max(value - below, bounds[0])), float(min(value + above, bounds[1])), seeds, n)


def over_seeds(values: Sequence[float] | np.ndarray, n: int, level: float = 0.95) -> Estimate:
    """The mean of one value a seed with its t-interval; the pairs (or test images, `n` of them) are taken as given."""
    per_seed = np.asarray(values, float)
    wide = np.inf if len(per_seed) < 2 else stats.sem(per_seed) * stats.t.ppf((1 + level) / 2, len(per_seed) - 1)
    value = float(per_seed.mean())
    return Estimate(value, float(value - wide), float(value + wide), len(per_seed), n)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def mean(table: pd.DataFrame, score: str = "clipmem", **options) -> Estimate:
    """Mean score of the table's pairs. `options` of every estimate here: n_boot, level, seed (see `interval`)."""
    return interval(lambda one, weights: _mean(one.columns[score], weights), table, [score], **options)


def means(table: pd.DataFrame, by: str, score: str = "clipmem", **options) -> pd.DataFrame:
    """One row a value of column `by`: `by`, value, low, high, seeds, n: what figures of means draw."""
    return pd.DataFrame({by: name, **vars(mean(part, score, **options))} for name, part in table.groupby(by))


def _groups(table: pd.DataFrame, group: str, *names: str) -> pd.DataFrame:
    for name in names:
        if not (table[group] == name).any():
            raise ValueError(f"no pair has {group} = {name!r}; there are {sorted(map(str, table[group].unique()))}")
    return table[table[group].isin(names)]


def difference(
    table: pd.DataFrame, score: str = "clipmem", high: str = "wrong", low="clean", group: str = "kind", **options
) -> Estimate:
    """Mean score of group `high` minus that of group `low`."""

    def statistic(one: Panel, weights: np.ndarray) -> np.ndarray:
        a, b = (weights * (one.group == name) for name in (high, low))
        return _mean(one.columns[score], a) - _mean(one.columns[score], b)

    return interval(statistic, _groups(table, group, high, low), [score], group, **options)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of `values` `[P]` when value i occurs `weights[b, i]` times: `[B, P]`, equal values share a rank."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    ties = np.add.reduceat(weights[:, order], first, axis=1)
    middle = np.cumsum(ties, axis=1) - ties / 2 + 0.5
    result = np.empty_like(weights)
    result[:, order] = np.repeat(middle, np.diff(np.r_[first, len(values)]), axis=1)
    return result


def roc_auc(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each resample `[B]` (Mann-Whitney form): values `[P]`, positive bool `[P]`."""
    hits, misses = weights[:, positive].sum(axis=1), weights[:, ~positive].sum(axis=1)
    rank_sum = (ranks(values, weights) * weights)[:, positive].sum(axis=1)
    return (rank_sum - hits * (hits + 1) / 2) / (hits * misses)


def precision(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of each resample `[B]`, as scikit-learn defines it: sum of precision times gain in recall."""
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(values[order]) < 0, True])
    hits = np.cumsum((weights * positive)[:, order], axis=1)[:, last]
    seen = np.cumsum(weights[:, order], axis=1)[:, last]
    gain = np.diff(hits, axis=1, prepend=0) / hits[:, -1:]
    return (gain * hits / np.maximum(seen, 1)).sum(axis=1)


METRICS = {"ROC AUC": roc_auc, "average precision": precision}


def _area(score: str, sign: int, metric: str, find: str) -> Statistic:
    return lambda one, weights: METRICS[metric](sign * one.columns[score], one.group == find, weights)


def detect(
    table: pd.DataFrame, score="clipmem", metric="ROC AUC", sign=1, find="wrong", among="clean", **options
) -> Estimate:
    """How well `sign * score` finds the pairs of one kind among another: 'ROC AUC' or 'average precision'."""
    chosen = _groups(table, "kind", find, among)
    return interval(_area(score, sign, metric, find), chosen, [score], "kind", bounds=(0, 1), **options)


def detection(table: pd.DataFrame, signs: Mapping[str, int], find="wrong", among="clean", **options) -> pd.DataFrame:
    """Rows score, metric, value, low, high, seeds, n, chance. `signs`: column -> +1 when a high score is suspicious,
    -1 when a low one is, written down before looking: {"clipmem": 1, "similarity_g": -1, "loss_f": 1}."""
    kinds = _groups(table, "kind", find, among)["kind"]
    chance = {"ROC AUC": 0.5, "average precision": float((kinds == find).mean())}
    rows = [{"score": score, "metric": metric, "chance": chance[metric]} for metric in METRICS for score in signs]
    found = [detect(table, r["score"], r["metric"], signs[str(r["score"])], find, among, **options) for r in rows]
    return pd.DataFrame(row | vars(estimate) for row, estimate in zip(rows, found, strict=True))


def gain(
    table: pd.DataFrame, signs: Mapping[str, int], metric="ROC AUC", find="wrong", among="clean", **options
) -> tuple[str, Estimate]:
    """The first score of `signs` minus the best of the others, paired (same seeds, same resamples): (best, Estimate).
    The best is picked on the same data, in the baselines' favour."""
    first, *others = signs
    best = max(others, key=lambda s: detect(table, s, metric, signs[s], find, among, n_boot=1).value)

    ours, theirs = (_area(s, signs[s], metric, find) for s in (first, best))
    chosen = _groups(table, "kind", find, among)
    return best, interval(lambda one, w: ours(one, w) - theirs(one, w), chosen, [first, best], "kind", **options)


def trend(table: pd.DataFrame, score: str = "clipmem", x: str = "dose", ranked: bool = True, **options) -> Estimate:
    """How the score goes with `x`: Spearman's rank correlation, or the least-squares slope when not `ranked`."""

    def statistic(one: Panel, weights: np.ndarray) -> np.ndarray:
        a, b = (ranks(one.columns[c], weights) if ranked else one.columns[c][None] for c in (x, score))
        share = weights / weights.sum(axis=1, keepdims=True)
        a, b = a - (a * share).sum(axis=1, keepdims=True), b - (b * share).sum(axis=1, keepdims=True)
        common, of_a, of_b = ((share * product).sum(axis=1) for product in (a * b, a * a, b * b))
        return common / (np.sqrt(of_a * of_b) if ranked else of_a)

    return interval(statistic, table, [score, x], **options)


def null_range(table: pd.DataFrame, level: float = 0.95, column: str = "null") -> tuple[float, float]:
    """Between which values the given share of the null scores lies (two models, same data, other seeds)."""
    low, high = table[column].dropna().quantile([(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(estimate: Estimate, threshold: float = 0.0, claim: str = "above", needs: tuple[int, int] = (2, 20)) -> str:
    """The verdict on "the statistic lies above (or below) the threshold", by rules fixed before looking:

    - 'not testable at this scale': fewer than `needs` = (seeds, pairs in the smallest group), or a limit is not finite;
    - 'reproduced': the whole interval lies on the claimed side of the threshold;
    - 'direction only': the value does, the interval does not;
    - 'not reproduced': the value does not.
    """
    if claim not in ("above", "below"):
        raise ValueError(f"claim is {claim!r}; it must be 'above' or 'below'")
    sign = 1 if claim == "above" else -1
    low, value = (sign * (v - threshold) for v in (estimate.low if sign > 0 else estimate.high, estimate.value))
    if estimate.seeds < needs[0] or estimate.n < needs[1] or not np.isfinite([low, value]).all():
        return VERDICTS[3]
    return VERDICTS[0] if low > 0 else VERDICTS[1] if value > 0 else VERDICTS[2]
