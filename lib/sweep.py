"""The models of a run on many machines. The store, on a folder that all of them see, is the only place where they meet.

./run_all.sh [SCALE] --share I/N     train every N-th model, beginning with the I-th, and end: start it N times
./run_all.sh [SCALE] --ray ADDRESS   train all of them with Ray (https://docs.ray.io, core tasks alone), then go on here

A worker that dies loses nothing: another one continues its model from the checkpoint in the store.
"""

import os
import socket
from collections.abc import Sequence
from typing import Any

from lib import runs, store
from lib.execute import NotebookError
from lib.model import precision
from lib.recipes import Recipe, needed_before
from lib.store import ROOT


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
        if ":" in address.partition("://")[0]:  # HOST:PORT, where ray.init would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(None if address == "local" else address, **about)
    except (OSError, ValueError, RuntimeError) as error:
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


def share(recipes: Sequence[Recipe], which: str) -> None:
    """Train the I-th of N shares of what is wanted, `which` = "I/N", such as "3/16"."""
    index, count = map(int, which.split("/"))
    own = recipes[index - 1 :: count]
    absent = runs.missing(own)
    print(f"share {which}: {len(own)} models, {len(own) - len(absent)} in the store", flush=True)
    runs.train_all(own)
