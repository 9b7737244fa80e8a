"""The models of a run on many machines. The store, on a folder that all of them see, is the only place where they meet.

python -m lib.sweep I/N [SCALE] [options of run_all.sh]    train every N-th model, beginning with the I-th, and end

Start it N times, on one machine or as the tasks of a scheduler, then ./run_all.sh with the same options: it finds what
is trained. ./run_all.sh --ray ADDRESS does all of it with Ray (https://docs.ray.io, core tasks alone). A worker that
dies loses nothing: another one continues its model from the checkpoint in the store.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from lib import runs, store, study
from lib.captions import DataError
from lib.execute import NotebookError
from lib.model import precision
from lib.recipes import CONDITIONS, Recipe, all_models, needed_before
from lib.run import ROOT, chosen, parse


def wanted(options: Namespace) -> list[Recipe]:
    """Return every model that the notebooks of some options need, each once, first those that others start from."""
    found: list[Recipe] = []
    for notebook in [path.stem for path in chosen(ROOT, options) if path.stem in CONDITIONS]:
        where = (options.scale, options.dataset, options.captions, options.image)
        found += all_models(study.plan(notebook, *where)[1], range(options.seeds))
    return sorted(dict.fromkeys(found), key=lambda recipe: bool(needed_before(recipe)))


def on_ray(recipes: Sequence[Recipe], address: str) -> None:
    """Train what the store lacks as tasks of a Ray cluster: `address` as for ray.init, or "local" for this machine.

    Each task takes one core and, where there are accelerators, one of `--jobs` parts of one. A task whose node dies
    starts again elsewhere. The code and the store have to be at the same place on all nodes. Raise NotebookError where
    there is no such cluster, or a model cannot be trained.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    same = {"PYTHONPATH": str(ROOT), "CLIPMEM_RUNS": str(store.root()), "CLIPMEM_PRECISION": precision()}
    about: dict[str, Any] = {"runtime_env": {"env_vars": same}, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(None if address == "local" else address, **about)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise NotebookError(f"--ray: no Ray cluster answers at {address!r}: {error!s:.200}") from error
    part = 1 / int(os.environ.get("CLIPMEM_JOBS") or 1) if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=part, max_retries=-1)(_train)
    absent = runs.missing(recipes)
    try:
        with runs.progress_bar(f"training {len(absent)} models on Ray", len(absent)) as bar:
            for wave in (False, True):  # first what others start from
                pending = [task.remote(recipe) for recipe in absent if bool(needed_before(recipe)) is wave]
                while pending:
                    done, pending = ray.wait(pending)
                    bar.update(len(ray.get(done)))
    except RayTaskError as error:
        raise NotebookError(f"a model failed on Ray: {error.cause!r}. The others are kept.") from error
    except RayError as error:
        raise NotebookError(f"Ray stopped: {error!s:.200}. What is trained is kept.") from error
    finally:
        ray.shutdown()


def _train(recipe: Recipe) -> None:
    """Train one model, as a task of Ray."""
    runs.run(recipe)


def main(words: Sequence[str]) -> int:
    """Train one share of the models; return the exit status."""
    index, _, count = (words[0] if words else "").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        print("[FAIL] python -m lib.sweep I/N [SCALE] [options of run_all.sh], with I from 1 to N", file=sys.stderr)
        return 2
    try:
        options = parse(list(words[1:]))
        os.environ |= {f"CLIPMEM_{n.upper()}": str(v) for n in ("jobs", "precision") if (v := getattr(options, n))}
        own = wanted(options)[int(index) - 1 :: int(count)]
        absent = runs.missing(own)
        print(f"worker {index} of {count}: {len(own)} models, {len(own) - len(absent)} in the store", flush=True)
        runs.train_all(own)
    except (DataError, store.StoreError, FloatingPointError) as error:
        print(f"[FAIL] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
