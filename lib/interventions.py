"""Notebooks 03, 04 and 06: which encoder memorizes; what mitigations, other losses and other sizes do to memorization
and to utility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from scipy.optimize import curve_fit
from threadpoolctl import threadpool_limits

from lib import encoders, objectives, runs, stats, tables, train, utility
from lib import model as models
from lib.data import prepare
from lib.recipes import CORRUPTED, Recipe, f_and_g
from lib.tables import cached, collected, in_minus_out, measured
from lib.utility import GALLERY, Labelled

if TYPE_CHECKING:
    from lib.study import Study

FAMILIES = ("captions", "noise", "augmented", "epochs", "removed")


# --- notebook 03 ---


def swap_test(study: Study) -> pd.DataFrame:
    """Return what of CLIPMem comes with either encoder alone, in the first condition: seed, corruption and the columns
    of `encoders.swap_parts`."""

    def swapped(recipe: Recipe) -> pd.DataFrame:
        g = f_and_g(recipe, recipe.seed)[1]
        name = f"swap-{runs.run_key(g)[:8]}"
        return cached(name, recipe, lambda f, _: encoders.swap_parts(f, runs.load(g), study.prepared, recipe.seed))

    found = collected(study, swapped, [next(iter(study.conditions))], roles="f").drop(columns=["condition", "role"])
    return found.merge(study.prepared.table[["pair_id", "corruption"]], on="pair_id", validate="many_to_one")


def by_caption(study: Study) -> pd.DataFrame:
    """Return CLIPMem of every pool and external pair with each of the picture's own captions, where the first one was
    trained on: seed, pair_id, subset, corruption, caption, clipmem."""
    rows, first = np.concatenate([study.prepared.subsets[s] for s in CORRUPTED]), next(iter(study.conditions))
    found = measured(study, "captions", lambda model, _: encoders.by_caption(model, study.prepared, rows), [first])
    found = in_minus_out(study, found)
    truth = study.prepared.table[["pair_id", "subset", "corruption"]]
    own = found["pair_id"].map(dict(zip(study.prepared.pair_ids, map(len, study.prepared.captions), strict=True)))
    each = []
    for caption in range(study.prepared.tokens.shape[1]):  # beyond its own ones, a picture's captions are repeated
        clipmem = found[f"contrast_{caption}_in"] - found[f"contrast_{caption}_out"]
        each.append(found[["seed", "pair_id"]].assign(caption=caption, clipmem=clipmem)[own > caption])
    return pd.concat(each, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def at_equal_loss(curves: pd.DataFrame) -> pd.DataFrame:
    """Return CLIPMem of every pool pair where two conditions have reached the same training loss, the larger of their
    final losses, for each seed: condition, seed, pair_id, corruption, loss, clipmem; interpolated between evaluations.

    `curves` are the tables that `tables.during_training` returns of the two, one below the other.
    """
    parts = []
    for seed, part in tables.pool(curves).groupby("seed"):
        level = part.groupby("condition")["loss"].min().max()
        for name, curve in part.groupby("condition", sort=False):
            losses = curve.groupby("epoch")["loss"].first().cummin().to_numpy()  # falls along training
            wide = curve.pivot(index="pair_id", columns="epoch", values="clipmem")
            after = int(np.searchsorted(-losses, -level).clip(1, len(losses) - 1))  # the evaluation that reaches it
            step = max(losses[after - 1] - losses[after], 1e-9)
            share = float(np.clip((losses[after - 1] - level) / step, 0, 1))  # of the way to that evaluation
            value = (1 - share) * wide.iloc[:, after - 1] + share * wide.iloc[:, after]
            parts.append(value.rename("clipmem").reset_index().assign(condition=name, seed=seed, loss=level))
    truth = curves[["pair_id", "corruption"]].drop_duplicates()
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def displacement(study: Study, conditions: Sequence[str]) -> pd.Series:
    """Return how far each condition's augmentation moves an embedding of the plain g: mean L2 distance over external
    pairs and seeds, by condition."""

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return pd.DataFrame([{name: _moved(model, study.conditions[name], study) for name in conditions}])

    names = "-".join(runs.run_key(study.conditions[name])[:6] for name in conditions)
    first = next(iter(study.conditions))
    return measured(study, f"displacement-{names}", measure, [first], roles="g")[list(conditions)].mean()


@torch.no_grad()
def _moved(model: CLIP, recipe: Recipe, study: Study) -> float:
    pairs = train.resident(study.prepared, study.prepared.subsets["external"], models.device())
    x, partner = objectives.batch(pairs, torch.arange(len(pairs.rows)), recipe, torch.Generator().manual_seed(0))
    if recipe.word_dropout:
        moved = models.encode_text(model, pairs.tokens[:, 0]) - models.encode_text(model, partner)
    else:
        plain = models.normalise(pairs.images[pairs.rows])
        moved = models.encode_image(model, plain) - models.encode_image(model, x)
    return float(moved.norm(dim=1).mean())


def fall(pairs: pd.DataFrame, name: str, than: str = "CLIP") -> pd.DataFrame:
    """Return by how much CLIPMem of each pool pair is lower under one condition than under another: seed, pair_id,
    corruption, fall."""
    keys = ["seed", "pair_id"]
    before, after = (tables.pool(pairs[pairs["condition"] == condition]) for condition in (than, name))
    both = before.merge(after[[*keys, "clipmem"]], on=keys, suffixes=("", "_after"), validate="one_to_one")
    return both[[*keys, "corruption"]].assign(fall=both["clipmem"] - both["clipmem_after"])


def gap(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Return the mean of `column` in the first table minus that in the second, paired by seed and pair."""
    both = first.merge(second, on=["seed", "pair_id"], suffixes=("_1", "_2"), validate="one_to_one")
    return stats.mean(both.assign(gap=both[f"{column}_1"] - both[f"{column}_2"]), "gap")


# --- notebook 04 ---


def utilities(study: Study, labelled: list[Labelled], conditions: Sequence[str] = ()) -> pd.DataFrame:
    """Return the utility of every f, of all or some conditions, on every test item: condition, seed, pair_id (the
    item's number), and the columns of `utility.utilities`."""
    name = "-".join(["utility", *(f"{one.name}.{one.fingerprint[:8]}" for one in labelled)])
    with threadpool_limits(1):  # the probes of several models at once, each with all cores, take 30 times as long
        found = measured(study, name, lambda f, r: utility.utilities(f, prepare(r.data), labelled), conditions, "f")
    return found.drop(columns="role").rename(columns={"item": "pair_id"})


def more_useful(useful: pd.DataFrame, measure: str, name: str, than: str = "CLIP") -> stats.Estimate:
    """Return `measure` under one condition minus that under another, item by item and paired by seed."""
    first, second = (useful.loc[useful["condition"] == c, ["seed", "pair_id", measure]] for c in (name, than))
    return gap(first.dropna(), second.dropna(), measure)


def summary(pairs: pd.DataFrame, useful: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return one row per condition of `pairs`: name, family ("CLIP" for none), m (mean CLIPMem of the pool) and u (mean
    of `measure`), each with its limits."""
    rows = []
    for name, part in tables.pool(pairs).groupby("condition", sort=False):
        family = next((word for word in FAMILIES if word in str(name)), "CLIP")
        m = stats.mean(part)
        u = stats.mean(useful.loc[useful["condition"] == name, ["seed", "pair_id", measure]].dropna(), measure)
        limits = {"m": m.value, "m_low": m.low, "m_high": m.high, "u": u.value, "u_low": u.low, "u_high": u.high}
        rows.append({"name": name, "family": family, **limits})
    return pd.DataFrame(rows)


def early_stopping(study: Study, condition: str = "CLIP") -> pd.DataFrame:
    """Return mean CLIPMem of the pool and retrieval of f along a training: seed, epoch, clipmem, bits, and floor, the
    standard deviation of f - g over external pairs. Retrieval is among the test pairs of an evaluation, which are the
    first gallery of `utility.utilities`."""
    found = tables.during_training(study, condition).groupby(["subset", "seed", "epoch"])["clipmem"]
    along = pd.DataFrame({"clipmem": found.mean()["pool"], "floor": found.std()["external"]}).reset_index()
    bits = collected(study, runs.history, [condition], roles="f")[["seed", "epoch", "bits"]].dropna()
    return along.merge(bits, on=["seed", "epoch"])


def over_early_stopping(
    study: Study, pairs: pd.DataFrame, useful: pd.DataFrame, name: str, plain: str = "CLIP"
) -> np.ndarray:
    """Return the bits of retrieval of a condition minus those of plain training, stopped where it has memorized as
    much: one value per seed, on the first gallery."""
    gains = []
    start = {"clipmem": 0.0, "bits": tables.CHANCE_BITS}  # before training: nothing memorized, a random order
    for seed, curve in early_stopping(study, plain).groupby("seed"):
        curve = pd.concat([pd.DataFrame([start]), curve]).sort_values("clipmem")
        here = tables.pool(pairs[(pairs["condition"] == name) & (pairs["seed"] == seed)])["clipmem"].mean()
        first = useful[(useful["condition"] == name) & (useful["seed"] == seed) & (useful["pair_id"] < GALLERY)]
        gains.append(first["bits"].mean() - np.interp(here, curve["clipmem"], curve["bits"]))
    return np.array(gains)


def against_early_stopping(study: Study, pairs: pd.DataFrame, useful: pd.DataFrame, name: str) -> stats.Estimate:
    """Return the mean of `over_early_stopping` over the seeds."""
    return stats.over_seeds(over_early_stopping(study, pairs, useful, name), GALLERY)


def range_effect(pairs: pd.DataFrame, names: Sequence[str]) -> stats.Estimate:
    """Return the relative fall of mean CLIPMem when it is divided by its range, minus that of the raw score: the mean
    of several conditions, by seed. Above 0, dividing by the range lets a mitigation look better than it is."""
    means = tables.pool(pairs).groupby(["condition", "seed"])[["clipmem", "clipmem_normalised"]].mean()
    falls = pd.concat([1 - means.loc[name] / means.loc["CLIP"] for name in names])
    by_seed = (falls["clipmem_normalised"] - falls["clipmem"]).groupby("seed").mean()
    return stats.over_seeds(by_seed.to_numpy(), tables.pool(pairs)["pair_id"].nunique())


def removed(study: Study) -> pd.DataFrame:
    """Return what each rule of the removal study takes out: condition, seed, wrong (share of swapped captions among the
    removed pairs)."""
    rows = []
    for name, base in study.conditions.items():
        for seed in study.seeds if base.remove else ():
            out = runs.suspicious(f_and_g(base, seed)[0])
            corruption = prepare(base.data).table.loc[out, "corruption"]
            rows.append((name, seed, float((corruption == "swapped").mean())))
    return pd.DataFrame(rows, columns=["condition", "seed", "wrong"])


# --- notebook 06 ---


def by_size(study: Study, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return mean CLIPMem of the pool for every number of training pairs and epochs: condition, seed, pairs, epochs,
    clipmem. Those are the conditions that differ from the first one in size or time alone."""
    base, rows = study.conditions["CLIP"], []
    means = tables.pool(pairs).groupby(["condition", "seed"])["clipmem"].mean()
    for name, one in study.conditions.items():
        usual = replace(one, data=replace(one.data, shared=base.data.shared), evaluations=base.evaluations)
        if replace(usual, epochs=base.epochs) == base:
            trained = one.data.shared + one.data.pool // 2
            rows += [(name, seed, trained, one.epochs, means[name, seed]) for seed in study.seeds]
    return pd.DataFrame(rows, columns=["condition", "seed", "pairs", "epochs", "clipmem"])


def power_law(sizes: pd.DataFrame) -> pd.DataFrame:
    """Return the least-squares fit of clipmem = scale * epochs ** a * (pairs / middle) ** b to a table of `by_size`,
    for each seed: seed, scale, a, b, middle (the median number of pairs)."""
    rows, middle = [], sizes["pairs"].median()

    def law(x: np.ndarray, scale: float, a: float, b: float) -> np.ndarray:
        return scale * x[0] ** a * (x[1] / middle) ** b

    for seed, one in sizes.groupby("seed"):
        known = one[["epochs", "pairs"]].to_numpy(float).T
        fit, _ = curve_fit(law, known, one["clipmem"], p0=(0.02, 1.0, -1.0), maxfev=10_000)
        rows.append((seed, *fit, middle))
    return pd.DataFrame(rows, columns=["seed", "scale", "a", "b", "middle"])
