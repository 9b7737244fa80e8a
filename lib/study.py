"""What every notebook begins and ends with: data and recipes at a scale, one line of provenance, figures kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib import figures, findings, labels, models, plans, store, sweep
from lib.data import Prepared, prepare
from lib.progress import report
from lib.recipes import SCALES, Recipe, at_scale, key, slug


@dataclass(frozen=True)
class Study:
    """The experiment of one notebook: `base` is f with seed 0, `conditions` what is compared (name -> f with seed 0),
    `recipes` every model that is needed."""

    notebook: str
    dataset: str
    scale: str
    seeds: tuple[int, ...]
    base: Recipe
    prepared: Prepared
    augmentations: int
    conditions: dict[str, Recipe]
    recipes: tuple[Recipe, ...]
    null: Recipe  # the model that f is compared with where nothing is to be found
    about: dict


def begin(
    notebook: str,
    scale: str,
    dataset: str,
    seeds: int,
    captions: str = "",
    force: bool = False,
    plan: Callable[[Recipe], dict[str, Recipe]] = plans.mislabelled,
) -> Study:
    """Load the data, plan the runs and print where the numbers will come from and how long the training will take.

    `captions` names the columns of the captions, with commas between them, where they are not found by themselves.
    Conditions of `plan` that need more captions a picture than there are fall away.

    Raises:
        ValueError: an unknown scale or a number of seeds below 1.
        lib.data.DataError: the data set cannot be read.
    """
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds: expected a whole number of at least 1, got {seeds!r}")
    figures.theme()
    base = at_scale(scale, dataset)
    columns = tuple(name.strip() for name in captions.split(",") if name.strip())
    report("data", 0, 1)
    prepared = prepare(replace(base.data, caption_columns=columns), store.root() / "cache")
    base = replace(base, data=prepared.data)
    conditions = _possible(plan(base), prepared)
    recipes = plans.runs(conditions, range(seeds))
    if force:
        sweep.forget(recipes, prepared)
    keys = [key(r, prepared.fingerprint) for r in recipes]
    store.note_use(f"{slug(dataset)}-{scale}", notebook, keys)
    about = figures.provenance(notebook, dataset, scale, seeds, keys)
    null, augmentations = plans.null_recipe(base, range(seeds)), SCALES[scale].augmentations
    named = (notebook, dataset, scale, tuple(range(seeds)), base, prepared, augmentations)
    study = Study(*named, conditions, tuple(recipes), null, about)
    print(_provenance(study))
    print(_plan(study))
    return study


def _possible(conditions: dict[str, Recipe], prepared: Prepared) -> dict[str, Recipe]:
    """The conditions that the data have enough captions for. Raises DataError where classes are needed and lacking."""
    if any(r.objective == "label" for r in conditions.values()):
        labels.targets(prepared.pairs, prepared.pairs.captions)
    return {name: r for name, r in conditions.items() if r.captions <= prepared.tokens.shape[1]}


def _provenance(study: Study) -> str:
    data, where = study.prepared.data, models.device()
    machine = torch.cuda.get_device_name() if where.type == "cuda" else f"{where}, {torch.get_num_threads()} threads"
    sizes = f"{data.shared:,} shared + {data.candidate:,} candidate or independent"
    return (
        f"{study.about['dataset']} at scale {study.scale}: {sizes} pairs a model, {len(study.seeds)} seeds · "
        f"{machine}, torch {torch.__version__} · commit {study.about['commit']}"
    )


def _plan(study: Study) -> str:
    have, need = sweep.cached(study.recipes, study.prepared), len(study.recipes)
    if have == need:
        return f"{have} of {need} runs are in the store: nothing to train"
    minutes = sweep.estimate_minutes(study.recipes, study.prepared)
    return f"{have} of {need} runs are in the store; training the others takes about {minutes:.1f} minutes here"


def keep(study: Study, figure: Figure, name: str, table: pd.DataFrame) -> list[str]:
    """Save a figure as `NN_name` with its table in the folder of reference figures; the paths of its files.

    A figure with pictures or captions of a data set other than scenes may not be published: it is only shown, and kept
    beside the executed notebook in `runs/`.
    """
    name = f"{study.notebook[:2]}_{name}"
    if figures.shows_data(figure, table) and study.dataset != "scenes":
        private = store.root() / "private" / findings.folder(study.dataset, study.scale).name
        private.mkdir(parents=True, exist_ok=True)
        figure.savefig(private / f"{name}.png", dpi=150)
        return []
    return figures.save(figure, name, table, findings.folder(study.dataset, study.scale), study.about)


def finish(study: Study, found: Sequence[findings.Finding], saved: Sequence[str]) -> pd.DataFrame:
    """The last act of a notebook: write its results file; the verdicts as a table to show."""
    findings.record(study.notebook, found, saved, study.dataset, study.scale)
    report("done", 1, 1)
    plt.close("all")
    columns = ["claim", "statistic", "value", "low", "high", "verdict"]
    rows = [[getattr(f, c) for c in columns] for f in found]
    return pd.DataFrame(rows, columns=columns, index=[f.finding for f in found])
