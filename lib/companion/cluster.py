"""The models of a run on many machines, which meet only in the store: `python -m lib.companion.cluster ORDER`.

./run_all.sh [SCALE] --share I/N     train every N-th model, beginning with the I-th, and end: start it N times
./run_all.sh [SCALE] --ray ADDRESS   train all of them with Ray (https://docs.ray.io, core tasks alone), then go on here

A worker that dies loses nothing: another one continues its model from the checkpoint in the store.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lib import runs, store
from lib.model import precision
from lib.recipes import Recipe, depends_on


def on_ray(recipes: Sequence[Recipe], address: str) -> None:
    """Train what the store lacks as tasks of a Ray cluster: `address` as for ray.init, or "local" for this machine.

    Each task takes one core and, where there are accelerators, one of `--jobs` parts of one. A task whose node dies
    starts again elsewhere. The code and the store have to be at the same place on all nodes.
    """
    import ray  # not among the packages that every reader installs

    same = {"PYTHONPATH": str(store.ROOT), "CLIPMEM_RUNS": str(store.root()), "CLIPMEM_PRECISION": precision()}
    about: dict[str, Any] = {"runtime_env": {"env_vars": same}, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(None if address == "local" else address, **about)
    part = 1 / int(os.environ.get("CLIPMEM_JOBS") or 1) if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=part, max_retries=-1)(_train)
    absent = runs.missing(recipes)
    with tqdm(desc=f"training {len(absent)} models on Ray", total=len(absent), file=sys.stdout) as bar:
        for wave in (False, True):  # first what others start from
            pending = [task.remote(recipe) for recipe in absent if bool(depends_on(recipe)) is wave]
            while pending:
                done, pending = ray.wait(pending)
                bar.update(len(ray.get(done)))
    ray.shutdown()


def _train(recipe: Recipe) -> None:
    runs.run(recipe)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])  # see run.run_all
    index, count = map(int, (order["share"] or "1/1").split("/"))
    own = runs.wanted(order["notebooks"], order["seeds"], *order["where"])[index - 1 :: count]
    if order["force"]:
        runs.forget(own)
    if order["ray"]:
        on_ray(own, order["ray"])
    else:
        print(f"share {order['share']}: {len(own)} models, {len(runs.missing(own))} to train", flush=True)
        runs.train_all(own)
