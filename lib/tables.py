"""From trained models to tidy tables, and those of notebooks 01 and 02. Most functions take a notebook's `study`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from open_clip.model import CLIP

from lib import reliability, runs, scores, store
from lib.data import Prepared, prepare
from lib.recipes import CORRUPTED, Recipe, f_and_g
from lib.train import training_rows

if TYPE_CHECKING:
    from lib.study import Study

Measure = Callable[[CLIP, Recipe], pd.DataFrame]
TRUTH = ["pair_id", "corruption", "share_swapped", "vagueness", "rarity", "mislabelled"]
OWN_SCORE = {"label": "labelmem", "caption": "clipmem", "view": "sslmem"}  # of each paradigm
MEMORIZED = {  # what is memorized -> the score it is the change of, and the sign of the change
    "clipmem": ("contrast", 1), "clipmem_plain": ("plain", 1), "clipmem_consistency": ("consistency", 1),
    "labelmem": ("probability", 1), "sslmem": ("distance_image", -1),
}  # fmt: skip
CHANCE_BITS = 1 / np.log(2)  # mean of log2(gallery / rank) for a random order in a large gallery: 1.44
ALIKE = 0.8  # share of common words from which two captions say nearly the same


# --- tables of many models ---


def cached(name: str, recipe: Recipe, measure: Measure) -> pd.DataFrame:
    """Return `measure(model, recipe)` of a recipe's model, kept in the store under the run's key and `name`."""

    def build(folder: Path) -> None:
        store.write_table(folder / "table.parquet", measure(runs.load(recipe), recipe))

    source = runs.run_key(recipe)
    folder = store.get_or_build("score", f"{source}-{name}", build, {"run": source})
    return pd.read_parquet(folder / "table.parquet")


def collected(
    study: Study, read: Callable[[Recipe], pd.DataFrame], conditions: Sequence[str] = (), roles: str = "fg"
) -> pd.DataFrame:
    """Return `read(recipe)` of f and g (or one of them) of every condition and seed, one below the other, with columns
    condition, seed, role. What several conditions share is read once."""
    wanted: dict[tuple[str, int, str], Recipe] = {}
    for condition, seed in product(conditions or study.conditions, study.seeds):
        f_g = dict(zip("fg", f_and_g(study.conditions[condition], seed), strict=True))
        wanted |= {(condition, seed, role): f_g[role] for role in roles}
    recipes = list(dict.fromkeys(wanted.values()))
    tables = runs.run_parallel(f"measuring {len(recipes)} models", lambda recipe, report: read(recipe), recipes)
    found = dict(zip(recipes, tables, strict=True))
    parts = [found[r].assign(condition=c, seed=s, role=role) for (c, s, role), r in wanted.items()]
    return pd.concat(parts, ignore_index=True)


def measured(
    study: Study, name: str, measure: Measure, conditions: Sequence[str] = (), roles: str = "fg"
) -> pd.DataFrame:
    """Return what `measure` finds in the models of `collected`, kept in the store under `name`."""
    return collected(study, lambda recipe: cached(name, recipe, measure), conditions, roles)


def in_minus_out(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return `runs.inside_outside` of a collected table, for every condition and seed: condition, seed, and its
    columns."""
    parts = []
    for (condition, seed), both in table.groupby(["condition", "seed"], sort=False):
        f, g = (both[both["role"] == role].drop(columns=["condition", "seed", "role"]) for role in "fg")
        prepared = prepare(study.conditions[condition].data)
        found = runs.inside_outside(f.reset_index(drop=True), g.reset_index(drop=True), prepared, seed)
        parts.append(found.assign(condition=condition, seed=seed))
    return pd.concat(parts, ignore_index=True)


# --- scores of pairs ---


def score_pairs(study: Study, conditions: Sequence[str] = (), subsets: Sequence[str] = CORRUPTED) -> pd.DataFrame:
    """Return the memorization of every pair of `subsets` under every condition and seed.

    Columns: condition, seed, pair_id, subset, member (1: f trained on it, -1: g did, 0: both or neither), the ground
    truth corruption, share_swapped, vagueness, rarity (NaN where unknown) and mislabelled, each score under the model
    that was trained on the pair (`_in`) and under the other one (`_out`), and the memorization, in - out: clipmem (of
    `contrast`), clipmem_plain, clipmem_consistency and clipmem_normalised (divided by its range over the pool), or
    labelmem, or sslmem. Of pairs with member 0 it is f - g, which for external pairs is the noise floor.
    """
    name = f"pairs-{study.augmentations}-{'-'.join(subset[:2] for subset in subsets)}"

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return scores.measure(model, recipe, prepare(recipe.data), study.augmentations, subsets)

    return _memorized(study, in_minus_out(study, measured(study, name, measure, conditions)))


def _memorized(study: Study, found: pd.DataFrame) -> pd.DataFrame:
    """Add to a table of `in_minus_out` what is memorized, and the ground truth."""
    for score, (of, sign) in MEMORIZED.items():
        if f"{of}_in" in found:
            found[score] = sign * (found[f"{of}_in"] - found[f"{of}_out"])
    if "clipmem" in found:
        of_pool = found["clipmem"].where(found["subset"] == "pool").groupby([found["condition"], found["seed"]])
        found["clipmem_normalised"] = found["clipmem"] / (of_pool.transform("max") - of_pool.transform("min"))
    truth = [prepare(r.data).table[TRUTH].assign(condition=name) for name, r in study.conditions.items()]
    return found.merge(pd.concat(truth), on=["condition", "pair_id"], how="left", validate="many_to_one")


def pool(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the pool."""
    return table[table["subset"] == "pool"]


def add_baselines(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Add the single-model baselines to `score_pairs` of the first condition: early_loss_in (at the first evaluation),
    mean_loss_in (over all), and `_in` and `_out` of augmentation and lemon, see `scores.single_model`."""
    name = next(iter(study.conditions))
    along = during_training(study)
    by_pair = along.sort_values("epoch").groupby(["seed", "pair_id"])["loss_in"]
    losses = pd.DataFrame({"early_loss_in": by_pair.first(), "mean_loss_in": by_pair.mean()}).reset_index()

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        rows = np.concatenate([study.prepared.subsets[subset] for subset in CORRUPTED])
        known = training_rows(recipe, study.prepared)
        return scores.single_model(model, study.prepared, rows, known, study.augmentations)

    both = in_minus_out(study, measured(study, f"baselines-{study.augmentations}", measure, [name]))
    both = both.drop(columns=["condition", "member"]).merge(losses, on=["seed", "pair_id"], how="left")
    return table.merge(both, on=["seed", "pair_id"], how="left")


def during_training(study: Study, condition: str = "") -> pd.DataFrame:
    """Return the scores of pool and external pairs at each evaluation, of images as they are, with the mean training
    loss of f and g: condition, seed, epoch, loss and the columns of `score_pairs`. Of the first condition, if none is
    given."""
    names = [condition or next(iter(study.conditions))]
    table = in_minus_out(study, collected(study, runs.evaluations, names))
    loss = collected(study, runs.history, names).groupby(["seed", "epoch"], as_index=False)["loss"].mean()  # f and g
    return _memorized(study, table.merge(loss, on=["seed", "epoch"], how="left"))


def histories(study: Study) -> pd.DataFrame:
    """Return loss, learning rate, utility and UnitMem by epoch of every model: condition, seed, role, epoch, ..."""
    return collected(study, runs.history)


def repeats(prepared: Prepared) -> pd.DataFrame:
    """Return how much of each pair the shared pairs repeat: pair_id, same_kind (number of shared scenes with the same
    main shape, colour, ground and texture; NaN where unknown) and same_caption (number of shared captions that share
    at least ALIKE of their words with the pair's own, of all that occur in either)."""
    table, shared = prepared.table, prepared.subsets["shared"]
    kind = pd.Series(list(zip(table["label"], table["rarity"], strict=True)), index=table.index)
    known = kind.map(kind.loc[shared].value_counts()).fillna(0)
    words = np.zeros((len(prepared.tokens), len(prepared.token_ids)), np.float32)
    words[np.arange(len(words))[:, None], prepared.tokens[:, 0]] = 1
    rows = np.concatenate([prepared.subsets[subset] for subset in CORRUPTED])
    words[:, 0] = 0  # padding
    common = words[rows] @ words[shared].T
    either = words[rows].sum(axis=1)[:, None] + words[shared].sum(axis=1)[None] - common
    same_kind = known.where(table["rarity"].notna()).loc[rows].to_numpy()
    same_caption = (common / either >= ALIKE).sum(axis=1)
    return pd.DataFrame({"pair_id": prepared.pair_ids[rows], "same_kind": same_kind, "same_caption": same_caption})


# --- notebook 01: three paradigms ---


def unit_scores(study: Study) -> pd.DataFrame:
    """Return UnitMem and ClassMem of every unit of every f and g, over its training images that were not planted:
    condition, seed, role, layer, unit, unitmem, classmem."""
    views, prepared = study.augmentations, study.prepared
    return measured(study, f"units-{views}", lambda m, r: scores.unit_scores(m, prepared, runs.unplanted(r), views))


def own_scores(study: Study) -> pd.DataFrame:
    """Return every pool pair's own score under each paradigm (label, caption, view) and its percentile among the pool,
    1 = memorized most (label_rank, caption_rank, view_rank), with seed, pair_id, corruption, mislabelled, rarity."""
    truth = pool(study.prepared.table)[["pair_id", "corruption", "mislabelled", "rarity"]]
    table = pd.DataFrame({"seed": study.seeds}).merge(truth, how="cross")
    for name, score in OWN_SCORE.items():
        own = pool(score_pairs(study, [name])).rename(columns={score: name})
        own[f"{name}_rank"] = own.groupby("seed")[name].rank(pct=True)
        table = table.merge(own[["seed", "pair_id", name, f"{name}_rank"]], on=["seed", "pair_id"])
    return table.sort_values(["seed", "pair_id"], ignore_index=True)


def agreement(own: pd.DataFrame) -> pd.DataFrame:
    """Return how well two paradigms agree on which pairs are memorized: first, second, correlation (of ranks, across
    seeds), ceiling (the most that noise allows), corrected (their quotient; NaN without reliability)."""
    rows = []
    for first, second in product(OWN_SCORE, repeat=2):
        observed, corrected = (reliability.correlation(own, first, second, way) for way in (False, True))
        ceiling = np.sqrt(np.maximum([reliability.reliability(own, name) for name in (first, second)], 0).prod())
        rows.append((first, second, observed, ceiling, corrected))
    return pd.DataFrame(rows, columns=["first", "second", "correlation", "ceiling", "corrected"])


def at_matched_utility(history: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return `value` of every paradigm and seed where its probe first reaches the best of the weakest one: condition,
    seed, `value`, probe (the level that all are compared at). `history` has them, and epoch, at the evaluations."""
    rows = []
    for seed, part in history.groupby("seed"):
        level = part.groupby("condition")["probe"].max().min()
        for name, curve in part.sort_values("epoch").groupby("condition"):
            best = curve.assign(probe=curve["probe"].cummax()).drop_duplicates("probe")  # where each was first reached
            rows.append((name, seed, float(np.interp(level, best["probe"], best[value])), level))
    return pd.DataFrame(rows, columns=["condition", "seed", value, "probe"])
