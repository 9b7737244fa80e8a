"""Many models trained, and measured, several side by side; each is found in the store or made now."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from open_clip.model import CLIP
from safetensors.torch import load_file
from tqdm import tqdm

from lib import model as models
from lib import scores, store, train, utility
from lib.data import Prepared, prepare
from lib.recipes import Recipe, key, needed_before

OnProgress = Callable[[float], None]  # is called with the share that is done
DELAY = 2.0  # seconds before progress is shown: what is done sooner needs no bar


# --- several at once ---


class Stopped(KeyboardInterrupt):
    """The reader interrupted; a notebook shows the sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def side_by_side() -> int:
    """Return how many models are worked on at once: CLIPMEM_JOBS (`./run_all.sh --jobs N`), else one per CPU core (a
    container's quota counts, which os.cpu_count() ignores), or one on an accelerator.

    Each has one thread (lib/model.py), which is faster than all cores on one small model (tests/benchmark.py).
    """
    asked = os.environ.get("CLIPMEM_JOBS") or ("1" if models.device().type != "cpu" else str(cpu_count()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"CLIPMEM_JOBS: expected a whole number from 1, got {asked!r}")
    return int(asked)


def run_parallel(what: str, work: Callable[[Recipe, OnProgress], Any], recipes: Sequence[Recipe]) -> list[Any]:
    """Return `work(recipe, on_progress)` for every recipe, in order, several at once in threads of one process.

    A progress bar shows the share that is done; in the logs of run_all.sh it is a line per half minute. Where one
    recipe fails, or the reader interrupts, the others end at their next report.
    """
    shares, stop, lock = dict.fromkeys(recipes, 0.0), Event(), Lock()

    def one(recipe: Recipe) -> Any:
        def on_progress(share: float) -> None:
            if stop.is_set():
                raise InterruptedError("stopped because another run failed or was interrupted")
            with lock:
                bar.update(share - shares[recipe])
                shares[recipe] = share

        torch.set_num_threads(1)  # it holds for one thread of Python
        on_progress(0)
        result = work(recipe, on_progress)
        on_progress(1)
        return result

    try:
        with progress_bar(what, len(shares)) as bar, ThreadPoolExecutor(side_by_side()) as pool:
            try:
                futures = [pool.submit(one, recipe) for recipe in recipes]
                for future in as_completed(futures):  # in this order, the first to fail is met at once
                    future.result()
                return [future.result() for future in futures]
            finally:
                stop.set()
    except KeyboardInterrupt:
        raise Stopped("Stopped. What is trained stays in the store; run the cell again and it continues.") from None


def progress_bar(what: str, total: float) -> tqdm:
    """Return a bar that rewrites one line or, in the logs of run_all.sh (CLIPMEM_LOGGED), adds one per half minute.

    There CLIPMEM_LATER, the estimated seconds of the notebooks that follow, is shown as well.
    """
    logged, later = "CLIPMEM_LOGGED" in os.environ, float(os.environ.get("CLIPMEM_LATER") or 0)
    line = "{desc}: {percentage:3.0f} %, {elapsed} so far, {remaining} left"
    line = f"[....] {line}" if logged else line
    line += f", then about {later / 60:.0f} min for the other notebooks" if later else ""
    often = {"mininterval": 30 if logged else 0.5, "miniters": 0, "delay": DELAY}
    return tqdm(desc=what, total=total, file=sys.stdout, leave=False, bar_format=line, **often)


# --- trained models ---


def run_key(recipe: Recipe) -> str:
    """Return the name of a recipe's run in the store, as trained on this machine."""
    return key(recipe, prepare(recipe.data).fingerprint, models.precision())


def missing(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes whose runs the store does not hold."""
    return [recipe for recipe in recipes if not store.finished("run", run_key(recipe))]


def train_all(recipes: Sequence[Recipe]) -> None:
    """Train what the store does not hold, first what others start from."""
    absent = missing(recipes)
    for wave in ([r for r in absent if not needed_before(r)], [r for r in absent if needed_before(r)]):
        if wave:
            run_parallel(f"training {len(wave)} models", run, wave)


def run(recipe: Recipe, on_progress: OnProgress = lambda share: None) -> Path:
    """Return the folder of one finished run: from the store, or trained now (and before it, what it starts from)."""

    def build(folder: Path) -> None:
        start, starts = perf_counter(), recipe.frozen or recipe.finetuned
        train.train(
            recipe=recipe,
            prepared=prepare(recipe.data),
            folder=folder,
            evaluate=lambda model: _evaluate(model, recipe),
            on_progress=on_progress,
            donor=load_file(run(needed_before(recipe)[0]) / "weights.safetensors") if starts else None,
            suspicious=suspicious(recipe),
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
        numbers = utility.during_training(model, recipe.reads_captions, prepared)
        numbers |= {f"unitmem_{n}": float(x) for n, x in units.groupby("layer")["unitmem"].mean().items()}
    return scores.measure(model, recipe, prepared, views=0), numbers


def unplanted(recipe: Recipe) -> np.ndarray:
    """Return the training rows of a recipe whose picture is as it was: a negative is the favourite of many units."""
    prepared = prepare(recipe.data)
    rows = train.training_rows(recipe, prepared)
    return rows[(prepared.table.loc[rows, "corruption"] != "inverted").to_numpy()]


def suspicious(recipe: Recipe) -> np.ndarray | None:
    """Return the training rows that a recipe removes or regroups: the share that its rule finds most suspicious.

    The scores are those of f and g of another seed. There each pair was seen by one of the two: "clipmem" is the
    alignment under that one minus that under the other, "held-out similarity" asks the other, "early loss" asks the one
    that saw the pair, at its first evaluation. "oracle" knows the wrong captions; "random" knows nothing.
    """
    share = recipe.remove or recipe.regrouped
    if not share:
        return None
    prepared, rule = prepare(recipe.data), recipe.remove_by
    rows = train.training_rows(recipe, prepared)
    if rule in ("random", "oracle"):
        chance = np.random.default_rng([recipe.seed, 3]).random(len(rows))
        doubt = chance + (rule == "oracle") * (prepared.table.loc[rows, "corruption"] == "swapped").to_numpy()
    else:
        f, g = needed_before(recipe)[-2:]
        table = inside_outside(evaluations(f), evaluations(g), prepared, f.seed).set_index("pair_id")
        last, first = (table[table["epoch"] == epoch] for epoch in (table["epoch"].max(), table["epoch"].min()))
        score = {
            "clipmem": last["contrast_in"] - last["contrast_out"],
            "held-out similarity": -last["similarity_out"],
            "early loss": first["loss_in"],
        }[rule]
        doubt = score[prepared.pair_ids[rows]].to_numpy()
    return rows[np.argsort(-doubt, kind="stable")[: round(share * len(rows))]]


def inside_outside(f: pd.DataFrame, g: pd.DataFrame, prepared: Prepared, seed: int) -> pd.DataFrame:
    """Return what the model that trained on a pair says of it, `<score>_in`, and what the other one says, `_out`.

    `f` and `g` are tables of the two models of one seed: pair_id, subset, perhaps epoch, and scores. Each row keeps
    these keys and gets member (1: f trained on the pair, -1: g did, 0: both or neither; there `_in` is f's) and two
    columns for each score. Raise ValueError where f and g did not score the same pairs in the same order.
    """
    keys = [name for name in ("pair_id", "subset", "epoch") if name in f]
    if not f[keys].equals(g[keys]):
        raise ValueError("f and g are of different pairs; score both on the same data and split")
    of_f, of_g = (f["pair_id"].isin(prepared.pair_ids[prepared.half(name, seed)]) for name in train.HALVES)
    found = f[keys].assign(member=of_f.astype(int) - of_g.astype(int))
    for name in f.columns.difference(keys):
        found[f"{name}_in"], found[f"{name}_out"] = f[name].mask(of_g, g[name]), g[name].mask(of_g, f[name])
    return found


def history(recipe: Recipe) -> pd.DataFrame:
    """Return what a run recorded of each epoch: epoch, loss, lr, logit_scale; where evaluated, utility and UnitMem."""
    return pd.read_parquet(run(recipe) / "history.parquet")


def evaluations(recipe: Recipe) -> pd.DataFrame:
    """Return the scores of pairs that a run recorded along training: pair_id, epoch and the columns of its scores."""
    return pd.read_parquet(run(recipe) / "evaluations.parquet")


def load(recipe: Recipe) -> CLIP:
    """Return the trained model of a recipe, ready to score."""
    model = train.fresh(recipe, prepare(recipe.data))
    model.load_state_dict(load_file(run(recipe) / "weights.safetensors"))
    return model.eval()
