"""Many models trained, and measured, several side by side; each is found in the store or made now."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from joblib import cpu_count  # which heeds a container's quota
from open_clip.model import CLIP
from safetensors.torch import load_file
from tqdm import tqdm

from lib import data, scores, store, train, utility
from lib import model as models
from lib.data import prepare
from lib.photos import DataError
from lib.recipes import CONDITIONS, SCALES, VERSION, Recipe, Study, all_models, at_scale, depends_on, f_and_g, key

PUBLISHED: dict[Recipe, tuple[Path, str]] = {}  # folder and key of published tables: they are read, nothing is trained
OnEpoch = Callable[[], None]  # called at the end of every epoch


def jobs() -> int:
    """Return how many models are trained at once: CLIPMEM_JOBS, else one on an accelerator, or one per CPU core."""
    return int(os.environ.get("CLIPMEM_JOBS") or (1 if models.device().type != "cpu" else cpu_count()))


def side_by_side(what: str, work: Callable[[Recipe, OnEpoch], Any], recipes: Sequence[Recipe]) -> list[Any]:
    """Return `work(recipe, on_epoch)` of every recipe, several at once in threads, with one progress bar of epochs.
    Where one recipe fails, or the reader interrupts, the others end with their epoch. Each has one thread of torch: it
    is faster than all cores on one small model, and gives the same bits on any number of cores."""
    stop, total = Event(), sum(recipe.epochs for recipe in recipes)

    def one(recipe: Recipe) -> Any:
        reported = 0

        def on_epoch() -> None:
            nonlocal reported
            if stop.is_set():
                raise InterruptedError("stopped because another model failed or was interrupted")
            bar.update()
            reported += 1

        torch.set_num_threads(1)  # holds for one thread of Python
        result = work(recipe, on_epoch)
        bar.update(recipe.epochs - reported)  # what was trained before
        return result

    bar = tqdm(desc=what, total=total, unit=" epochs", file=sys.stdout, leave=False, delay=2)
    with bar, ThreadPoolExecutor(jobs()) as pool:
        try:
            futures = [pool.submit(one, recipe) for recipe in recipes]
            for future in as_completed(futures):  # in this order, the first to fail is met at once
                future.result()
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def plan(notebook: str, scale: str, dataset: str, captions: str = "", image: str = "") -> dict[str, Recipe]:
    """Return the possible conditions of a notebook, the plain one first, with the sizes that the data set allows. Those
    that need more captions per image than there are fall away. `captions` (with commas between several) and `image`
    name columns that are not found by themselves. Raise DataError for data that cannot be read or lack classes."""
    given = [captions] if isinstance(captions, str) else captions or []  # a list, or null, with `papermill -y`
    base, columns = at_scale(scale, dataset), tuple(filter(None, map(str.strip, ",".join(given).split(","))))
    data = prepare(replace(base.data, caption_columns=columns, image_column=image))
    conditions = CONDITIONS[notebook](replace(base, data=data.config))
    if not data.class_names and any(recipe.objective == "supervised" for recipe in conditions.values()):
        said = f"{dataset}: notebook {notebook[:2]} trains on class labels and found none. The data set needs a column"
        raise DataError(f"{said} 'label' (one class per image) or 'labels' (lists of classes) with at least 2 classes.")
    possible = {name: one for name, one in conditions.items() if one.n_captions <= data.tokens.shape[1]}
    return {name: replace(one, data=prepare(one.data).config) for name, one in possible.items()}


def read_published(folder: Path, notebook: str, scale: str, dataset: str) -> Study | None:
    """Let `prepare` and this module read the scores that are published in a folder, all seeds of a notebook, and return
    it as a study; None where there are none."""
    index = json.loads((folder / "index.json").read_text())["models"] if folder.is_dir() else []
    entries = [entry for entry in index if entry["notebook"] == notebook]
    held, commits, seeds = ({entry[name] for entry in entries} for name in ("condition", "commit", "seed"))
    conditions = {name: one for name, one in CONDITIONS[notebook](at_scale(scale, dataset)).items() if name in held}
    for entry in entries:
        pair = f_and_g(conditions[entry["condition"]], entry["seed"])
        PUBLISHED[pair["fg".index(entry["role"])]] = folder, entry["key"]
    for config in {one.data for one in conditions.values()}:
        data.PUBLISHED[config] = data.stand_in(config, pd.read_parquet(folder / config.file))
    told = f"Published scores of {len(entries)} models ({', '.join(sorted(commits))}). scores = 'own' trains them here."
    print(told if entries else "No scores are published for this data set and scale: its models are trained here.")
    return Study(conditions, tuple(sorted(seeds)), SCALES[scale].augmentations) if entries else None


def wanted(notebooks: Sequence[str], seeds: int, *where: str) -> list[Recipe]:
    """Return every model that some notebooks need, each once. `where`: as for `plan`, from `scale` on."""
    conditions = [plan(name, *where) for name in notebooks if name in CONDITIONS]
    return list(dict.fromkeys(recipe for one in conditions for recipe in all_models(one, range(seeds))))


def run_key(recipe: Recipe) -> str:
    """Return the key of a recipe's run in the store, as trained on this machine; of a published one, its own."""
    if recipe in PUBLISHED:
        return PUBLISHED[recipe][1]
    return key(recipe, prepare(recipe.data).fingerprint, f"{models.precision()} {models.device().type}")


def missing(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes whose runs the store does not hold; none, where published tables are read."""
    return [recipe for recipe in recipes if not PUBLISHED and not store.finished("run", run_key(recipe))]


def forget(recipes: Sequence[Recipe]) -> None:
    """Delete the runs of some recipes and their scores from the store, so that they are made again."""
    for name in map(run_key, recipes):
        store.remove("run", name)
        for entry in (store.root() / "score").glob(f"{name}-*"):
            store.remove("score", entry.name)


def train_all(recipes: Sequence[Recipe]) -> None:
    """Train what the store does not hold, first what others start from."""
    absent = missing(recipes)
    for wave in ([r for r in absent if not depends_on(r)], [r for r in absent if depends_on(r)]):
        if wave:
            side_by_side(f"training {len(wave)} models", run, wave)


def run(recipe: Recipe, on_epoch: OnEpoch = lambda: None) -> Path:
    """Return the folder of a finished run: from the store, or trained now (and before it, what it depends on)."""

    def build(folder: Path) -> None:
        start, needed = perf_counter(), [run(other) for other in depends_on(recipe)]
        donor = load_file(needed[0] / "weights.safetensors") if recipe.frozen else None
        left_out = removed(recipe) if recipe.remove else ()
        evaluate = partial(_evaluate, recipe=recipe)
        train.train(recipe, prepare(recipe.data), folder, evaluate, on_epoch, donor, left_out)
        made = {"seconds": perf_counter() - start, "torch": torch.__version__, "device": models.device().type}
        store.write_json(folder / "made.json", {**made, "side_by_side": jobs()})

    about = {"version": VERSION, "precision": models.precision(), "recipe": asdict(recipe)}
    return store.get_or_build("run", run_key(recipe), build, about)


def removed(recipe: Recipe) -> Any:
    """Return the training rows that a recipe leaves out, by scores of the models that it depends on."""
    return scores.rows_to_remove(recipe, prepare(recipe.data), [evaluations(other) for other in depends_on(recipe)])


def _evaluate(model: CLIP, recipe: Recipe) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return what a run records of its model along training: scores of pairs, and numbers for its history."""
    data, numbers = prepare(recipe.data), dict[str, float]()
    if len(train.evaluation_epochs(recipe)) > 1 and not recipe.frozen and recipe.data.test:
        units = scores.unit_scores(model, data, scores.uninverted_rows(recipe, data), views=2)
        numbers = utility.during_training(model, recipe.reads_captions, data)
        numbers |= {f"unitmem_{n}": float(x) for n, x in units.groupby("layer")["unitmem"].mean().items()}
    return scores.measure(model, recipe, data, views=0), numbers


def _kept(name: str, recipe: Recipe, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return a small table of a run, kept apart from its weights: whoever has only the tables reads it without them.
    Raise ValueError where published tables are read, and this is none of them."""
    if PUBLISHED:
        return store.published(*PUBLISHED.get(recipe, (Path("figures"), "of this recipe")), name)

    def build(folder: Path) -> None:
        store.write_table(folder / "table.parquet", make())

    key = run_key(recipe)
    folder = store.get_or_build("score", f"{key}-{name}", build, {"run": key})
    return pd.read_parquet(folder / "table.parquet")


def history(recipe: Recipe) -> pd.DataFrame:
    """Return what a run recorded of each epoch: epoch, loss, lr, logit_scale; where evaluated, utility and UnitMem."""
    return _kept("history", recipe, lambda: pd.read_parquet(run(recipe) / "history.parquet"))


def evaluations(recipe: Recipe) -> pd.DataFrame:
    """Return the scores of pairs that a run recorded along training: pair_id, epoch and the columns of its scores."""
    return _kept("evaluations", recipe, lambda: pd.read_parquet(run(recipe) / "evaluations.parquet"))


def load(recipe: Recipe) -> CLIP:
    """Return the trained model of a recipe, ready to score."""
    model = train.fresh(recipe, prepare(recipe.data))
    model.load_state_dict(load_file(run(recipe) / "weights.safetensors"))
    return model.eval()


def cached(name: str, recipe: Recipe, measure: Callable[[CLIP, Recipe], pd.DataFrame]) -> pd.DataFrame:
    """Return `measure(model, recipe)` of a recipe's model, kept in the store under the run's key and `name`."""
    return _kept(name, recipe, lambda: measure(load(recipe), recipe))
