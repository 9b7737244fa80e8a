"""The models of a run on many machines, which meet only in the store: `python -m lib.companion.cluster ORDER`.

./run_all.sh [SCALE] --share I/N     train every N-th model, beginning with the I-th, and end: start it N times
./run_all.sh [SCALE] --ray ADDRESS   train all of them with Ray (https://docs.ray.io), then run the notebooks here

A worker that dies loses nothing: another one continues its model from the checkpoint in the store.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lib import runs, store
from lib.model import precision
from lib.recipes import Recipe, depends_on


def on_ray(recipes: Sequence[Recipe], address: str) -> None:
    """Train what the store lacks as tasks of a Ray cluster: `address` as for ray.init, or "local" for this machine.
    Each task takes one core and, on an accelerator, one of `--jobs` parts of it. If its node dies, it starts again
    elsewhere. Code and store are at the same place on all nodes. Raise OSError where no cluster answers."""
    import ray  # not among the packages that every reader installs

    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():  # where nobody answers, ray.init would try for minutes
        socket.create_connection((host, int(port)), timeout=10).close()
    same = {"PYTHONPATH": str(store.ROOT), "CLIPMEM_RUNS": str(store.root()), "CLIPMEM_PRECISION": precision()}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(None if address == "local" else address, runtime_env={"env_vars": same}, **quiet)
    part = 1 / int(os.environ.get("CLIPMEM_JOBS") or 1) if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=part, max_retries=-1)(runs.run)
    absent = runs.missing(recipes)
    with tqdm(desc=f"training {len(absent)} models on Ray", total=len(absent), file=sys.stdout) as bar:
        for wave in (False, True):  # first what others start from
            pending = [task.remote(recipe) for recipe in absent if bool(depends_on(recipe)) is wave]
            while pending:
                done, pending = ray.wait(pending)
                bar.update(len(ray.get(done)))
    ray.shutdown()


def train(order: dict[str, Any]) -> None:
    """Train a share of the models that some notebooks need. `order`: see run.run_all."""
    index, count = map(int, (order["share"] or "1/1").split("/"))
    own = runs.wanted(order["notebooks"], order["seeds"], *order["where"])[index - 1 :: count]
    runs.forget(own if order["force"] else [])
    print(f"share {index}/{count}: {len(own)} models, {len(runs.missing(own))} to train", flush=True)
    on_ray(own, order["ray"]) if order["ray"] else runs.train_all(own)


if __name__ == "__main__":
    try:
        train(json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(f"[FAIL] {error}")
