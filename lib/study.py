"""How a notebook begins and ends: data and models at a scale, provenance, figures kept, findings recorded."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.figure import Figure

from lib import costs, figures, findings, runs, store, train
from lib import model as models
from lib.captions import DataError
from lib.conditions import CONDITIONS
from lib.data import Prepared, prepare
from lib.recipes import SCALES, Recipe, all_models, at_scale, did_you_mean, published_name, slug
from lib.runs import run_parallel, side_by_side

VERSIONS = ("torch", "open_clip_torch", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn")
# What comes on top of the timed steps: evaluations and scores, as a factor, and start and figures of a notebook, in
# seconds. Measured: ./run_all.sh smoke takes 152 s for 5 notebooks, where the steps alone would take 37 s.
OVERHEAD, START = 1.4, 20.0


@dataclass(frozen=True, kw_only=True)
class Book:
    """What a notebook leaves behind: its figures and its results."""

    notebook: str
    dataset: str
    scale: str
    about: dict[str, Any]  # what stands behind its figures
    saved: list[str] = field(default_factory=list)  # names of the figures among its results

    def keep(self, figure: Figure, name: str, table: pd.DataFrame, captions: Collection[str] = ()) -> None:
        """Show a figure, and save it as `NN_name` with its table among the results of this run, `runs/results/`.

        A figure that shows images or captions of a data set other than scenes stays out of the results, which may be
        published: it lies in `runs/private/`.
        """
        name = f"{self.notebook[:2]}_{name}"
        if not figure.get_supxlabel():
            figures.footer(figure, self.about)
        if self.scale == "smoke":
            figures.watermark(figure)
        folder = findings.results_folder(self.dataset, self.scale)
        if self.dataset != "scenes" and figures.shows_data(figure, table, captions):
            folder = store.root() / "private" / folder.name
        elif name not in self.saved:
            self.saved.append(name)
        told = {"title": figure.get_suptitle(), "footer": figure.get_supxlabel(), "place": len(self.saved)}
        figures.save(figure, name, table, folder, self.about | told)
        figures.show(figure, name=name)

    def finish(self, found: Sequence[findings.Finding]) -> pd.DataFrame:
        """Write the results file of this run, the last act of a notebook; return the verdicts as a table to show."""
        findings.record(self.notebook, found, self.saved, self.about)
        plt.close("all")
        columns = ["verdict", "claim", "statistic", "value", "low", "high", "p", "detectable", "reason"]
        rows = pd.DataFrame([vars(one) for one in found], columns=columns, index=[one.finding for one in found])
        return rows.sort_index().round(4)


@dataclass(frozen=True, kw_only=True)
class Study(Book):
    """The experiment of one notebook. `base` is f with seed 0, `prepared` its data, `conditions` what is compared
    (name -> f with seed 0; some have other data), `models` every model that is needed."""

    seeds: tuple[int, ...]
    base: Recipe
    prepared: Prepared
    augmentations: int
    conditions: dict[str, Recipe]
    models: tuple[Recipe, ...]

    def keep(self, figure: Figure, name: str, table: pd.DataFrame, captions: Collection[str] = ()) -> None:
        """Do as `Book.keep` with the captions of this data set."""
        super().keep(figure, name, table, captions or {text for own in self.prepared.captions for text in own})


def begin(
    notebook: str, scale: str, dataset: str, seeds: int, captions: str = "", image: str = "", force: bool = False
) -> Study:
    """Load the data, list the models, and print where the numbers will come from and how long the training will take.

    `captions` (with commas between several) and `image` name columns that are not found by themselves. Conditions that
    need more captions per image than there are fall away. `force` trains again what was trained before.

    Raise ValueError for an impossible parameter, DataError for a data set that cannot be read or lacks needed classes.
    """
    check_parameters(begin, locals())
    if seeds < 1:
        raise ValueError(f"seeds: expected a whole number of at least 1, got {seeds}")
    figures.theme()
    prepare.cache_clear()  # so that a file that was changed since is read again
    store.rebuild(float(os.environ.get("CLIPMEM_BEGUN", time.time())) if force else 0)
    prepared, conditions = plan(notebook, scale, dataset, captions, image)
    base, needed = next(iter(conditions.values())), all_models(conditions, range(seeds))
    study = Study(
        notebook=notebook,
        dataset=dataset,
        scale=scale,
        seeds=tuple(range(seeds)),
        base=base,
        prepared=prepared,
        augmentations=SCALES[scale].augmentations,
        conditions=conditions,
        models=tuple(needed),
        about=provenance(notebook, scale, dataset, prepared.fingerprint, map(runs.run_key, needed), seeds),
    )
    if scale == "smoke":
        print("SMOKE: this run shows that the machinery works. Its numbers mean nothing, and nothing is decided.")
    pool = prepared.data.pool
    sizes = f"{prepared.data.shared:,} shared + {pool // 2:,} of {pool:,} pool pairs per model"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else models.device().type
    versions = f"{device}, {models.precision()}, torch {torch.__version__}, commit {study.about['commit']}"
    print(f"{study.about['name']}, scale {scale}: {sizes}, {seeds} seed{'s' * (seeds > 1)} · {versions}")
    absent = runs.missing(needed)
    minutes = estimate_seconds(absent) / 60
    left = f"training the others takes about {minutes:.0f} minutes here" if absent else "nothing to train"
    print(f"{len(needed) - len(absent)} of {len(needed)} models are in the store; {left}")
    return study


def check_parameters(start: Callable, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that `papermill -p` sets and `start`, with which a notebook begins, does not
    have, where papermill would only warn; and for one of another type: its "false" is a text."""
    known = inspect.signature(start, eval_str=True).parameters
    for name in known:
        if type(given[name]) is not (kind := known[name].annotation):
            how = {str: "text (papermill: -r instead of -p)", int: "a whole number", bool: "True or False"}[kind]
            raise ValueError(f"{name}: expected {how}, got {given[name]!r}")
    for cell in getattr(get_ipython(), "user_ns", {}).get("In", []):
        names = re.findall(r"^(\w+) =", cell, re.MULTILINE) if cell.startswith("# Parameters\n") else []
        for name in [name for name in names if name not in known]:
            raise ValueError(f"parameter {name!r} does not exist: {', '.join(known)}.{did_you_mean(name, known)}")


def plan(notebook: str, scale: str, dataset: str, captions: str, image: str) -> tuple[Prepared, dict[str, Recipe]]:
    """Return the prepared data of the base recipe and the possible conditions of a notebook, that recipe first, with
    the sizes that the data set allows. The data of every condition are then in memory. Raise as `begin`."""
    base = at_scale(scale, dataset)
    columns = tuple(name.strip() for name in captions.split(",") if name.strip())
    asked = replace(base.data, caption_columns=columns, image_column=image)
    base = replace(base, data=prepare(asked).data)
    prepared, conditions = prepare(base.data), CONDITIONS[notebook](base)
    if not prepared.class_names and any(recipe.objective == "label" for recipe in conditions.values()):
        raise DataError(
            f"{dataset}: notebook {notebook[:2]} trains on class labels and found none. The data set needs a column "
            f"'label' (one class per image) or 'labels' (lists of classes) with at least 2 classes."
        )
    possible = {name: one for name, one in conditions.items() if one.n_captions <= prepared.tokens.shape[1]}
    return prepared, {name: replace(one, data=prepare(one.data).data) for name, one in possible.items()}


def wanted(notebooks: Sequence[str], scale: str, data: str, seeds: int, captions: str, image: str) -> list[Recipe]:
    """Return every model that some notebooks need, each once. Raise as `begin`."""
    conditions = [plan(n, scale, data, captions, image)[1] for n in notebooks if n in CONDITIONS]
    return list(dict.fromkeys(recipe for one in conditions for recipe in all_models(one, range(seeds))))


def provenance(
    notebook: str, scale: str, dataset: str, fingerprint: str, keys: Iterable[str], seeds: int
) -> dict[str, Any]:
    """Return what stands behind a figure: its notebook, data, models (their keys), commit, device and versions."""
    return {
        "notebook": notebook,
        "dataset": slug(dataset),
        "name": published_name(dataset),
        "data": fingerprint,
        "scale": scale,
        "seeds": seeds,
        "runs": hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:16],
        "commit": commit(),
        "claims_commit": _git("log", "-1", "--format=%h", "--abbrev=10", "--", "lib/claims.json") or "unknown",
        "device": models.device().type,
        "precision": models.precision(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def commit() -> str:
    """Return the project's commit, 10 hex digits, with '+' where lib or notebooks differ; 'unknown' without git."""
    head = _git("rev-parse", "--short=10", "HEAD")
    return head + "+" if head and _git("status", "--porcelain", "--", "lib", "notebooks") else head or "unknown"


def _git(*words: str) -> str:
    """Return what git says about the project, "" where it says nothing or is not there."""
    try:
        command = ["git", "-C", str(store.ROOT), *words]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cost(
    notebooks: Sequence[str], scale: str, dataset: str, seeds: int, captions: str = "", image: str = ""
) -> list[tuple[str, int, int, float]]:
    """Return for each notebook its name, how many models it needs that none before it does, how many of them the store
    lacks, and about how many seconds it takes. Raise as `begin`."""
    known: set[Recipe] = set()
    found = []
    for notebook in notebooks:
        conditions = plan(notebook, scale, dataset, captions, image)[1] if notebook in CONDITIONS else {}
        needed = [recipe for recipe in all_models(conditions, range(seeds)) if recipe not in known]
        absent = runs.missing(needed)
        found.append((notebook, len(needed), len(absent), START + estimate_seconds(absent)))
        known |= set(needed)
    return found


def estimate_seconds(recipes: Sequence[Recipe]) -> float:
    """Return about how long the given trainings and their scores will take here, from a few timed steps."""
    jobs, total, kinds = side_by_side(), 0.0, dict[Any, list[Recipe]]()
    for recipe in recipes:
        kinds.setdefault((recipe.objective, recipe.width, recipe.depth, recipe.batch), []).append(recipe)
    for same in kinds.values():
        copies = [replace(same[0], seed=-1 - copy) for copy in range(jobs)]
        step = np.mean(run_parallel("estimating the time", lambda recipe, report: _step_seconds(recipe), copies))
        total += step * sum(map(_steps, same))
    return total * OVERHEAD / jobs


def _steps(recipe: Recipe) -> int:
    """Return the number of optimiser steps of a training."""
    recipe = train.schedule(recipe)
    rows = len(train.training_rows(recipe, prepare(recipe.data)))
    return recipe.epochs * max(1, round(rows * (1 - recipe.remove)) // recipe.batch)


def _step_seconds(recipe: Recipe) -> float:
    """Return the seconds of a training step."""
    prepared = prepare(recipe.data)
    return costs.trial(recipe, len(prepared.token_ids), prepared.tokens.shape[2], prepared.targets.shape[1])[0]
