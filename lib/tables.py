"""From trained models to tidy tables, one row per condition, seed and pair (or test item, unit, epoch)."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
from open_clip.model import CLIP
from threadpoolctl import threadpool_limits

from lib import runs, scores, stats, utility
from lib.data import prepare
from lib.recipes import CORRUPTED, Recipe, Study, f_and_g
from lib.runs import cached
from lib.utility import Labelled

Measure = Callable[[CLIP, Recipe], pd.DataFrame]
TRUTH = ["pair_id", "corruption", "share_planned", "share_swapped", "vagueness", "rarity", "mislabelled"]
CHANCE_BITS = 1 / np.log(2)  # mean of log2(gallery / rank) for a random order in a large gallery: 1.44


def collect(study: Study, read: Callable, conditions: Sequence[str] = (), roles: str = "fg") -> pd.DataFrame:
    """Return `read(recipe)` of f and g (or one) of all conditions and seeds, with columns condition, seed, role."""
    wanted: dict[tuple[str, int, str], Recipe] = {}
    for condition, seed in product(conditions or study.conditions, study.seeds):
        f_g = dict(zip("fg", f_and_g(study.conditions[condition], seed), strict=True))
        wanted |= {(condition, seed, role): f_g[role] for role in roles}
    recipes = list(dict.fromkeys(wanted.values()))
    tables = runs.side_by_side(f"measuring {len(recipes)} models", lambda recipe, on_epoch: read(recipe), recipes)
    found = dict(zip(recipes, tables, strict=True))
    parts = [found[r].assign(condition=c, seed=s, role=role) for (c, s, role), r in wanted.items()]
    return pd.concat(parts, ignore_index=True)


def measure_all(study: Study, name: str, measure: Measure, conditions: Sequence[str] = (), roles: str = "fg"):
    """Return what `measure` finds in the models of `collect`, kept in the store under `name`."""
    return collect(study, lambda recipe: cached(name, recipe, measure), conditions, roles)


def memorization(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return `scores.memorization` of a table of `collect` for every condition and seed, with the ground truth of each
    pair: corruption, share_swapped, vagueness, rarity (NaN where unknown) and mislabelled."""
    parts = []
    for (condition, seed), both in table.groupby(["condition", "seed"], sort=False):
        f, g = (both[both["role"] == role].drop(columns=["condition", "seed", "role"]) for role in "fg")
        data = prepare(study.conditions[condition].data)
        found = scores.in_out(f.reset_index(drop=True), g.reset_index(drop=True), data, seed)
        found = scores.memorization(found).assign(condition=condition, seed=seed)
        parts.append(found.merge(data.table[TRUTH], on="pair_id", how="left", validate="many_to_one"))
    return pd.concat(parts, ignore_index=True)


def score_pairs(study: Study, conditions: Sequence[str] = (), subsets: Sequence[str] = CORRUPTED) -> pd.DataFrame:
    """Return the memorization of every pair of `subsets` under every condition and seed: condition, seed, the columns
    of `scores.in_out` and of `memorization`. Of pairs with member 0 it is f - g; of external pairs, the noise floor."""
    name = f"pairs-{study.augmentations}-{'-'.join(subset[:2] for subset in subsets)}"

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return scores.measure(model, recipe, prepare(recipe.data), study.augmentations, subsets)

    return memorization(study, measure_all(study, name, measure, conditions))


def pool(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the pool."""
    return table[table["subset"] == "pool"]


def by_caption(study: Study) -> pd.DataFrame:
    """Return how the plain models remember pool and external pairs in other words: CLIPMem with the trained caption,
    `trained`, the picture's other ones, `others` (NaN: none), and `all`; SSLMem of the encoders, `text` and `image`."""

    def measure(model: CLIP, recipe: Recipe) -> pd.DataFrame:
        return scores.by_caption(model, prepare(recipe.data))

    found = memorization(study, measure_all(study, "by-caption", measure, [study.plain]))
    names = [name.removesuffix("_in") for name in found if name.startswith("contrast_") and name.endswith("_in")]
    each = pd.DataFrame({name: found[f"{name}_in"] - found[f"{name}_out"] for name in sorted(names)})
    others, mean = each.drop(columns="contrast_0").mean(axis=1), each.mean(axis=1)
    own = {side: found[f"distance_{side}_out"] - found[f"distance_{side}_in"] for side in ("text", "image")}
    found = found[["seed", "subset", "member", *TRUTH]]
    return found.assign(trained=each["contrast_0"], others=others, all=mean, **own)


def during_training(study: Study, condition: str = "") -> pd.DataFrame:
    """Return the scores of pool and external pairs at each evaluation, of images as they are, with the mean training
    loss of f and g: seed, epoch, loss and the columns of `score_pairs`; by default of the plain condition."""
    names = [condition or study.plain]
    table = memorization(study, collect(study, runs.evaluations, names))
    loss = collect(study, runs.history, names).groupby(["seed", "epoch"], as_index=False)["loss"].mean()  # of f and g
    return table.merge(loss, on=["seed", "epoch"], how="left")


def clipmem_drop(pairs: pd.DataFrame, name: str, than: str = "CLIP") -> pd.DataFrame:
    """Return by how much CLIPMem of each pool pair drops from `than` to `name`: seed, pair_id, corruption, drop."""
    keys = ["seed", "pair_id"]
    before, after = (pool(pairs[pairs["condition"] == condition]) for condition in (than, name))
    both = before.merge(after[[*keys, "clipmem"]], on=keys, suffixes=("", "_after"), validate="one_to_one")
    return both[[*keys, "corruption"]].assign(drop=both["clipmem"] - both["clipmem_after"])


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Return the mean of `column` in the first table minus that in the second, paired by seed and pair."""
    both = first.merge(second, on=["seed", "pair_id"], suffixes=("_1", "_2"), validate="one_to_one")
    return stats.mean(both.assign(difference=both[f"{column}_1"] - both[f"{column}_2"]), "difference")


def utilities(study: Study, labelled: list[Labelled], conditions: Sequence[str] = ()) -> pd.DataFrame:
    """Return the utility of every f, of all or some conditions, on every test item: condition, seed, pair_id (the
    item's number), and the columns of `utility.utilities`."""
    name = "-".join(["utility", *(f"{one.name}.{one.fingerprint[:8]}" for one in labelled)])
    with threadpool_limits(1):  # the probes of several models at once, each with all cores, take 30 times as long
        found = measure_all(study, name, lambda f, r: utility.utilities(f, prepare(r.data), labelled), conditions, "f")
    return found.drop(columns="role").rename(columns={"item": "pair_id"})


def at_matched_utility(history: pd.DataFrame, value: str, share: float = 1.0) -> pd.DataFrame:
    """Return `value` of every condition and seed where its probe first reaches a `share` of the best of the weakest
    one: condition, seed, `value`, probe (the common level), and `beyond`: whether its curve begins above this level.
    `history` has them, and epoch, at the evaluations."""
    rows = []
    for seed, part in history.groupby("seed"):
        level = share * part.groupby("condition")["probe"].max().min()
        for name, curve in part.sort_values("epoch").groupby("condition"):
            best = curve.assign(probe=curve["probe"].cummax()).drop_duplicates("probe")  # where each was first reached
            at_level = float(np.interp(level, best["probe"], best[value]))
            rows.append((name, seed, at_level, level, bool(curve["probe"].iloc[0] > level)))
    return pd.DataFrame(rows, columns=["condition", "seed", value, "probe", "beyond"])
