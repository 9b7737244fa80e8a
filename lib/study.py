"""How a notebook begins and ends: data and models at a scale, provenance, figures kept, findings recorded."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib import figures, findings, objectives, runs, store, train
from lib import model as models
from lib.captions import DataError
from lib.data import Prepared, prepare
from lib.recipes import CONDITIONS, SCALES, Recipe, all_models, at_scale, noise_floor_model, published_name, slug

VERSIONS = ("torch", "open_clip_torch", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn")
# Evaluations and scores come on top of training: the whole time of ./run_all.sh laptop / the time of its training
OVERHEAD = 1.3


@dataclass(frozen=True)
class Study:
    """The experiment of one notebook. `base` is f with seed 0, `conditions` what is compared (name -> f with seed 0),
    `models` every model that is needed, `noise_floor` the f that f is compared with where nothing is to be found."""

    notebook: str
    dataset: str
    scale: str
    seeds: tuple[int, ...]
    base: Recipe
    prepared: Prepared
    augmentations: int
    conditions: dict[str, Recipe]
    models: tuple[Recipe, ...]
    noise_floor: Recipe
    about: dict[str, Any]  # what stands behind its figures

    def keep(self, figure: Figure, name: str, table: pd.DataFrame) -> None:
        """Save a figure as `NN_name` with its table among the results of this run, `runs/results/`.

        A figure that shows images or captions of a data set other than scenes stays out of the results, which may be
        published: it lies in `runs/private/`.
        """
        name = f"{self.notebook[:2]}_{name}"
        if self.scale == "smoke":
            figures.watermark(figure)
        folder = findings.results_folder(self.dataset, self.scale)
        texts = {text for own in self.prepared.captions for text in own}
        if self.dataset != "scenes" and figures.shows_data(figure, table, texts):
            folder = store.root() / "private" / folder.name
        else:
            self.about["figures"].append(name)
        figures.save(figure, name, table, folder, {k: v for k, v in self.about.items() if k != "figures"})

    def finish(self, found: Sequence[findings.Finding]) -> pd.DataFrame:
        """Write the results file of this run, the last act of a notebook; return the verdicts as a table to show."""
        about = {k: v for k, v in self.about.items() if k != "figures"}
        findings.record(self.notebook, found, list(dict.fromkeys(self.about["figures"])), about)
        plt.close("all")
        columns = ["claim", "statistic", "value", "low", "high", "verdict"]
        rows = [[getattr(one, column) for column in columns] for one in found]
        return pd.DataFrame(rows, columns=columns, index=[one.finding for one in found])


def begin(
    notebook: str, scale: str, dataset: str, seeds: int, captions: str = "", image: str = "", force: bool = False
) -> Study:
    """Load the data, list the models, and print where the numbers will come from and how long the training will take.

    `captions` (with commas between several) and `image` name columns that are not found by themselves. Conditions that
    need more captions per image than there are fall away. `force` trains again what was trained before.

    Raises:
        ValueError: a parameter has a value that it cannot have.
        DataError: the data set cannot be read, or has no classes where the notebook needs them.
    """
    if type(seeds) is not int or seeds < 1:
        raise ValueError(f"seeds: expected a whole number of at least 1, got {seeds!r}")
    if type(force) is not bool:
        raise ValueError(f"force: expected True or False, got {force!r}")
    figures.theme()
    store.rebuild(float(os.environ.get("CLIPMEM_BEGUN", time.time())) if force else 0)
    base, prepared, conditions = plan(notebook, scale, dataset, captions, image)
    needed = all_models(conditions, range(seeds))
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
        noise_floor=noise_floor_model(base, range(seeds)),
        about=_provenance(notebook, dataset, scale, seeds, prepared, needed),
    )
    if scale == "smoke":
        print("SMOKE: this run shows that the machinery works. Its numbers mean nothing, and nothing is decided.")
    sizes = f"{prepared.data.shared:,} shared + {prepared.data.candidate:,} candidate or independent pairs per model"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else models.device().type
    versions = f"{device}, {models.precision()}, torch {torch.__version__}, commit {study.about['commit']}"
    print(f"{study.about['name']}, scale {scale}: {sizes}, {seeds} seeds · {versions}")
    absent = runs.missing(needed, prepared)
    minutes = estimate_seconds(absent, prepared) / 60
    cost = f"training the others takes about {minutes:.0f} minutes here" if absent else "nothing to train"
    print(f"{len(needed) - len(absent)} of {len(needed)} models are in the store; {cost}")
    return study


def plan(
    notebook: str, scale: str, dataset: str, captions: str, image: str
) -> tuple[Recipe, Prepared, dict[str, Recipe]]:
    """Return the base recipe, the prepared data and the possible conditions of a notebook. Raise as `begin`."""
    base = at_scale(scale, dataset)
    columns = tuple(name.strip() for name in captions.split(",") if name.strip())
    prepared = prepare(replace(base.data, caption_columns=columns, image_column=image))
    base = replace(base, data=prepared.data)
    conditions = CONDITIONS[notebook](base)
    if not prepared.class_names and any(recipe.objective == "label" for recipe in conditions.values()):
        raise DataError(
            f"{dataset}: notebook {notebook[:2]} trains on class labels and found none. The data set needs a column "
            f"'label' (one class per image) or 'labels' (lists of classes) with at least 2 classes."
        )
    width = prepared.tokens.shape[1]
    return base, prepared, {name: recipe for name, recipe in conditions.items() if recipe.n_captions <= width}


def _provenance(
    notebook: str, dataset: str, scale: str, seeds: int, prepared: Prepared, needed: Sequence[Recipe]
) -> dict[str, Any]:
    """Return what stands behind a figure: its notebook, data, models, commit, device and library versions."""
    versions = dict.fromkeys(VERSIONS, "not installed")
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "notebook": notebook,
        "dataset": slug(dataset),
        "name": published_name(dataset),
        "data": prepared.fingerprint,
        "scale": scale,
        "seeds": seeds,
        "run_keys": sorted(runs.run_key(recipe, prepared) for recipe in needed),
        "commit": commit(),
        "device": models.device().type,
        "precision": models.precision(),
        "versions": versions,
        "figures": [],
    }


def commit(root: Path = store.ROOT) -> str:
    """Return the project's commit, 10 hex digits, with '+' when lib or notebooks differ from it; 'unknown' without
    git."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = [*git, "status", "--porcelain", "--", "lib", "notebooks"]
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# --- what it will cost ---


def cost(
    notebooks: Sequence[str], scale: str, dataset: str, seeds: int, captions: str = "", image: str = ""
) -> list[tuple[str, int, int, float]]:
    """Return for each notebook its name, how many models it needs that none before it does, how many of them the store
    lacks, and about how many seconds these take. Raise as `begin`."""
    known: set[Recipe] = set()
    found = []
    for notebook in notebooks:
        needed: list[Recipe] = []
        if notebook in CONDITIONS:
            _, prepared, conditions = plan(notebook, scale, dataset, captions, image)
            needed = [recipe for recipe in all_models(conditions, range(seeds)) if recipe not in known]
            absent = runs.missing(needed, prepared)
        known |= set(needed)
        seconds = estimate_seconds(absent, prepared) if needed else 0.0
        found.append((notebook, len(needed), len(absent) if needed else 0, seconds))
    return found


def estimate_seconds(recipes: Sequence[Recipe], prepared: Prepared) -> float:
    """Return about how long the given trainings and their scores will take here, from a few timed steps."""
    jobs, total = runs.side_by_side(), 0.0
    for objective in dict.fromkeys(recipe.objective for recipe in recipes):
        same = [recipe for recipe in recipes if recipe.objective == objective]
        copies = [replace(same[0], seed=-1 - copy) for copy in range(jobs)]
        step = np.mean(runs.run_parallel("estimating the time", lambda r, report: _step_seconds(r, prepared), copies))
        for recipe in same:
            total += step * recipe.epochs * (len(train.training_rows(recipe, prepared)) // recipe.batch)
    return total * OVERHEAD / jobs


def _step_seconds(recipe: Recipe, prepared: Prepared) -> float:
    """Return the seconds of a training step, the mean of three after a first one; nothing is kept."""
    model = train.fresh(replace(recipe, seed=0), prepared)
    optimiser = train.make_optimiser(model, recipe)
    rows = np.resize(np.sort(prepared.subsets["shared"]), recipe.batch)
    pairs, generator, started = train.resident(prepared, rows, models.device()), torch.Generator(), monotonic()
    for number in range(4):
        started = monotonic() if number == 1 else started
        made = objectives.batch(pairs, torch.arange(len(rows)), recipe, generator)
        float(train.step(model, optimiser, objectives.loss(model, recipe, *made, generator)))
    return (monotonic() - started) / 3
