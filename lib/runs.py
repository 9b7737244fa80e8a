"""Many models trained, and measured, several side by side; each is found in the store or made now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP

from lib import model as models
from lib import scores, store, train, utility
from lib.data import prepare
from lib.parallel import OnProgress, run_parallel, side_by_side
from lib.recipes import Recipe, f_and_g, key, needed_before
from lib.scores import inside_outside

if TYPE_CHECKING:
    from lib.study import Study

Measure = Callable[[CLIP, Recipe], pd.DataFrame]


def run_key(recipe: Recipe) -> str:
    """Return the name of a recipe's run in the store, as trained on this machine."""
    return key(recipe, prepare(recipe.data).fingerprint, models.precision())


def missing(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes whose runs the store does not hold."""
    return [recipe for recipe in recipes if not store.finished("run", run_key(recipe))]


def run(recipe: Recipe, on_progress: OnProgress = lambda share: None) -> Path:
    """Return the folder of one finished run: from the store, or trained now (and before it, what it starts from)."""

    def build(folder: Path) -> None:
        start = perf_counter()
        donor = run(needed_before(recipe)[0]) / "weights.safetensors" if recipe.frozen else None
        train.train(
            recipe=recipe,
            prepared=prepare(recipe.data),
            folder=folder,
            evaluate=lambda model: _evaluate(model, recipe),
            on_progress=on_progress,
            donor=store.read_tensors(donor) if donor else None,
            left_out=left_out(recipe),
        )
        made = {"seconds": perf_counter() - start, "torch": torch.__version__, "device": models.device().type}
        store.write_json(folder / "made.json", {**made, "side_by_side": side_by_side()})

    about = {"dataset": recipe.data.dataset, "objective": recipe.objective, "trained_on": " + ".join(recipe.trained_on)}
    others = {"seed": recipe.seed, "precision": models.precision(), "recipe": asdict(recipe)}
    return store.get_or_build("run", run_key(recipe), build, {**about, **others})


def _evaluate(model: CLIP, recipe: Recipe) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return what a run records of its model along training: scores of pairs, and numbers for its history."""
    prepared, numbers = prepare(recipe.data), dict[str, float]()
    if len(train.evaluation_epochs(recipe)) > 1 and not recipe.frozen:
        units = scores.unit_scores(model, prepared, unplanted(recipe), views=2)
        numbers = utility.during_training(model, recipe.objective, prepared)
        numbers |= {f"unitmem_{n}": float(x) for n, x in units.groupby("layer")["unitmem"].mean().items()}
    return scores.measure(model, recipe, prepared, views=0), numbers


def unplanted(recipe: Recipe) -> np.ndarray:
    """Return the training rows of a recipe whose picture is as it was: a negative is the favourite of many units."""
    prepared = prepare(recipe.data)
    rows = train.training_rows(recipe, prepared)
    return rows[~prepared.inverted[rows]]


def history(recipe: Recipe) -> pd.DataFrame:
    """Return what a run recorded of each epoch: epoch, loss, lr, logit_scale; where evaluated, utility and UnitMem."""
    return pd.read_parquet(run(recipe) / "history.parquet")


def evaluations(recipe: Recipe) -> pd.DataFrame:
    """Return the scores of pairs that a run recorded along training: pair_id, epoch and the columns of its scores."""
    return pd.read_parquet(run(recipe) / "evaluations.parquet")


def left_out(recipe: Recipe) -> np.ndarray | None:
    """Return the training rows that a recipe removes: the `remove` share that its rule finds most suspicious.

    The scores are those of f and g of another seed. There each pair was seen by one of the two: "clipmem" is the
    alignment under that one minus that under the other, "held-out similarity" asks the other, "early loss" asks the one
    that saw the pair, at its first evaluation. "oracle" knows the wrong captions; "random" knows nothing.
    """
    if not recipe.remove:
        return None
    prepared, rule = prepare(recipe.data), recipe.remove_by
    rows = train.training_rows(recipe, prepared)
    if rule in ("random", "oracle"):
        chance = np.random.default_rng([recipe.seed, 3]).random(len(rows))
        suspicious = chance + (rule == "oracle") * (prepared.table.loc[rows, "corruption"] == "swapped").to_numpy()
    else:
        f, g = needed_before(recipe)
        table = inside_outside(evaluations(f), evaluations(g), prepared, f.seed)
        last, first = (table[table["epoch"] == epoch] for epoch in (table["epoch"].max(), table["epoch"].min()))
        score = {
            "clipmem": last.set_index("pair_id").eval("contrast_in - contrast_out"),
            "held-out similarity": -last.set_index("pair_id")["similarity_out"],
            "early loss": first.set_index("pair_id")["loss_in"],
        }[rule]
        suspicious = score[prepared.pair_ids[rows]].to_numpy()
    return rows[np.argsort(-suspicious, kind="stable")[: round(recipe.remove * len(rows))]]


def load(recipe: Recipe) -> CLIP:
    """Return the trained model of a recipe, ready to score."""
    model = train.fresh(recipe, prepare(recipe.data))
    model.load_state_dict(store.read_tensors(run(recipe) / "weights.safetensors"))
    return model.eval()


def train_all(recipes: Sequence[Recipe]) -> None:
    """Train what the store does not hold, first what others start from."""
    absent = missing(recipes)
    for wave in ([r for r in absent if not needed_before(r)], [r for r in absent if needed_before(r)]):
        if wave:
            run_parallel(f"training {len(wave)} models", run, wave)


def cached(name: str, recipe: Recipe, measure: Measure) -> pd.DataFrame:
    """Return `measure(model, recipe)` of a recipe's model, kept in the store under the run's key and `name`."""

    def build(folder: Path) -> None:
        store.write_table(folder / "table.parquet", measure(load(recipe), recipe))

    source = run_key(recipe)
    folder = store.get_or_build("score", f"{source}-{name}", build, {"run": source})
    return pd.read_parquet(folder / "table.parquet")


def measured(
    study: Study, name: str, measure: Measure, conditions: Sequence[str] = (), roles: str = "fg"
) -> pd.DataFrame:
    """Return what `measure` finds in f and g (or one of them) of every condition and seed, one below the other, with
    columns condition, seed, role."""
    wanted: dict[tuple[str, int, str], Recipe] = {}
    for condition, seed in product(conditions or study.conditions, study.seeds):
        both = dict(zip("fg", f_and_g(study.conditions[condition], seed), strict=True))
        wanted |= {(condition, seed, role): both[role] for role in roles}
    recipes = list(dict.fromkeys(wanted.values()))
    what = f"measuring {len(recipes)} models"
    tables = run_parallel(what, lambda recipe, report: cached(name, recipe, measure), recipes)
    found = dict(zip(recipes, tables, strict=True))
    return pd.concat(
        [found[r].assign(condition=c, seed=s, role=role) for (c, s, role), r in wanted.items()], ignore_index=True
    )


def in_minus_out(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return `inside_outside` of a measured table, for every condition and seed: condition, seed, and its columns."""
    parts = []
    for (condition, seed), both in table.groupby(["condition", "seed"], sort=False):
        f, g = (both[both["role"] == role].drop(columns=["condition", "seed", "role"]) for role in "fg")
        prepared = prepare(study.conditions[condition].data)
        found = inside_outside(f.reset_index(drop=True), g.reset_index(drop=True), prepared, seed)
        parts.append(found.assign(condition=condition, seed=seed))
    return pd.concat(parts, ignore_index=True)
