"""Many models trained, and measured, several side by side; each is found in the store or made now."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from itertools import product
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from tqdm import tqdm

from lib import model as models
from lib import scores, store, train, utility
from lib.recipes import Recipe, f_and_g, key, needed_before

if TYPE_CHECKING:
    from lib.data import Prepared
    from lib.study import Study

OnProgress = Callable[[float], None]  # is called with the share that is done
Measure = Callable[[CLIP, Recipe], pd.DataFrame]
DELAY = 2.0  # seconds before progress is shown: what is done sooner needs no bar


class Stopped(KeyboardInterrupt):
    """The reader interrupted; a notebook shows the sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def run_key(recipe: Recipe, prepared: Prepared) -> str:
    """Return the name of a recipe's run in the store, as trained on this machine."""
    return key(recipe, prepared.fingerprint, models.precision())


def missing(recipes: Sequence[Recipe], prepared: Prepared) -> list[Recipe]:
    """Return the recipes whose runs the store does not hold."""
    return [recipe for recipe in recipes if not store.finished("run", run_key(recipe, prepared))]


def run(recipe: Recipe, prepared: Prepared, on_progress: OnProgress = lambda share: None) -> Path:
    """Return the folder of one finished run: from the store, or trained now (and before it, what it starts from)."""

    def build(folder: Path) -> None:
        start, before = perf_counter(), needed_before(recipe)
        train.train(
            recipe=recipe,
            prepared=prepared,
            folder=folder,
            evaluate=lambda model: _evaluate(model, recipe, prepared),
            on_progress=on_progress,
            donor=store.read_tensors(run(before[-1], prepared) / "weights.safetensors") if recipe.frozen else None,
            left_out=left_out(recipe, prepared),
        )
        made = {"seconds": perf_counter() - start, "torch": torch.__version__, "device": models.device().type}
        store.write_json(folder / "made.json", {**made, "side_by_side": side_by_side()})

    about = {"dataset": recipe.data.dataset, "objective": recipe.objective, "trained_on": " + ".join(recipe.trained_on)}
    others = {"seed": recipe.seed, "precision": models.precision(), "recipe": asdict(recipe)}
    return store.get_or_build("run", run_key(recipe, prepared), build, {**about, **others})


def _evaluate(model: CLIP, recipe: Recipe, prepared: Prepared) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return what a run records of its model along training: scores of pairs, and numbers for its history."""
    numbers: dict[str, float] = {}
    if len(train.evaluation_epochs(recipe)) > 1:
        units = scores.unit_scores(model, prepared, train.training_rows(recipe, prepared), views=2)
        numbers = utility.during_training(model, recipe.objective, prepared)
        numbers |= {f"unitmem_{n}": float(x) for n, x in units.groupby("layer")["unitmem"].mean().items()}
    return scores.measure(model, recipe.objective, prepared, views=0), numbers


def left_out(recipe: Recipe, prepared: Prepared) -> np.ndarray | None:
    """Return the rows of the candidates that a recipe removes, by the scores of f and g at the end of training."""
    if not recipe.remove:
        return None
    rows = prepared.subsets["candidate"]
    if recipe.remove_by == "random":
        return np.random.default_rng([recipe.seed, 3]).permutation(rows)[: recipe.remove]
    tables = (pd.read_parquet(run(before, prepared) / "evaluations.parquet") for before in needed_before(recipe))
    f, g = (table[table["epoch"] == table["epoch"].max()].set_index("pair_id") for table in tables)
    suspicious = {"clipmem": f["contrast"] - g["contrast"], "similarity": -f["similarity"], "loss": f["loss"]}
    worst = suspicious[recipe.remove_by][prepared.pair_ids[rows]].to_numpy()
    return rows[np.argsort(-worst, kind="stable")[: recipe.remove]]


def load(recipe: Recipe, prepared: Prepared) -> CLIP:
    """Return the trained model of a recipe, ready to score."""
    model = train.fresh(recipe, prepared)
    model.load_state_dict(store.read_tensors(run(recipe, prepared) / "weights.safetensors"))
    return model.eval()


def cores() -> int:
    """Return how many CPU cores this process may use; a container's quota counts, which os.cpu_count() ignores."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or "max": no quota
        return count


def side_by_side() -> int:
    """Return how many models are worked on at once: CLIPMEM_JOBS (`./run_all.sh --jobs N`), else one per CPU core, or
    one on an accelerator.

    One thread per model is faster on the CPU than all cores on one small model (tests/benchmark.py), and the bits of a
    run then do not depend on how many cores there are.
    """
    asked = os.environ.get("CLIPMEM_JOBS") or ("1" if models.device().type != "cpu" else str(cores()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"CLIPMEM_JOBS: expected a whole number from 1, got {asked!r}")
    return int(asked)


def run_parallel(what: str, work: Callable[[Recipe, OnProgress], Any], recipes: Sequence[Recipe]) -> list[Any]:
    """Return `work(recipe, on_progress)` for every recipe, in order, several at once in threads of one process.

    A progress bar shows the share that is done; in the logs of run_all.sh it is a line per half minute. Where one
    recipe fails, or the reader interrupts, the others end at their next report.
    """
    shares, stop, lock = dict.fromkeys(recipes, 0.0), Event(), Lock()
    jobs, threads = side_by_side(), torch.get_num_threads()

    def one(recipe: Recipe) -> Any:
        def on_progress(share: float) -> None:
            if stop.is_set():
                raise InterruptedError("stopped because another run failed or was interrupted")
            with lock:
                bar.update(share - shares[recipe])
                shares[recipe] = share

        torch.set_num_threads(max(1, min(threads, cores()) // jobs))
        on_progress(0)
        result = work(recipe, on_progress)
        on_progress(1)
        return result

    try:
        with progress_bar(what, len(shares)) as bar, ThreadPoolExecutor(jobs) as pool:
            try:
                futures = [pool.submit(one, recipe) for recipe in recipes]
                for future in as_completed(futures):  # in this order, the first to fail is met at once
                    future.result()
                return [future.result() for future in futures]
            finally:
                stop.set()
    except KeyboardInterrupt:
        raise Stopped("Stopped. What is trained stays in the store; run the cell again and it continues.") from None
    finally:
        torch.set_num_threads(threads)


def progress_bar(what: str, total: float) -> tqdm:
    """Return a bar that rewrites one line or, in the logs of run_all.sh (CLIPMEM_LOGGED), adds one per half minute.

    There CLIPMEM_LATER, the estimated seconds of the notebooks that follow, is shown as well.
    """
    logged, later = "CLIPMEM_LOGGED" in os.environ, float(os.environ.get("CLIPMEM_LATER") or 0)
    start = "[....] " if logged else ""
    end = f", then about {later / 60:.0f} min for the other notebooks" if later else ""
    return tqdm(
        desc=what,
        total=total,
        file=sys.stdout,
        leave=False,
        miniters=0,
        mininterval=30 if logged else 0.5,
        delay=DELAY,
        bar_format=f"{start}{{desc}}: {{percentage:3.0f}} %, {{elapsed}} so far, {{remaining}} left{end}",
    )


def train_all(recipes: Sequence[Recipe], prepared: Prepared) -> None:
    """Train what the store does not hold, first what others start from."""
    absent = missing(recipes, prepared)
    for wave in ([r for r in absent if not needed_before(r)], [r for r in absent if needed_before(r)]):
        if wave:
            run_parallel(f"training {len(wave)} models", lambda r, report: run(r, prepared, report), wave)


def cached(study: Study, name: str, recipe: Recipe, measure: Measure) -> pd.DataFrame:
    """Return `measure(model, recipe)` of a recipe's model, kept in the store under the run's key and `name`."""

    def build(folder: Path) -> None:
        store.write_table(folder / "table.parquet", measure(load(recipe, study.prepared), recipe))

    source = run_key(recipe, study.prepared)
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
    tables = run_parallel(what, lambda r, report: cached(study, name, r, measure), recipes)
    found = dict(zip(recipes, tables, strict=True))
    return pd.concat(
        [found[r].assign(condition=c, seed=s, role=role) for (c, s, role), r in wanted.items()], ignore_index=True
    )


def f_minus_g(table: pd.DataFrame, columns: Mapping[str, str], sign: int = 1) -> pd.DataFrame:
    """Return `sign` x (f - g) of a measured table, row by row: `columns` names what each column is called then.

    Raises:
        ValueError: f and g did not measure the same things in the same order.
    """
    f, g = (table[table["role"] == role].reset_index(drop=True) for role in "fg")
    keys = [name for name in ("condition", "seed", "pair_id", "subset", "layer") if name in table]
    if not f[keys].equals(g[keys]):
        raise ValueError("f and g are of different pairs; score both on the same data and split")
    return f[keys].assign(**{new: sign * (f[old] - g[old]) for old, new in columns.items()})
