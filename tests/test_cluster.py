"""Many machines: workers that share the store, and a Ray cluster of two nodes, of which one is killed."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from conftest import BRIEF, ROOT, TINY

from lib import runs, store
from lib.companion import parse, run
from lib.recipes import f_and_g

COMMAND = ["smoke", "--only", "02", "--seeds", "1", "--share"]


def test_two_workers_train_every_model_once_and_to_the_same_bits(tmp_path, monkeypatch):
    recipes = run.check(parse(COMMAND[:-1]), ["02_miscaptioned_memorization"])  # the data are there before the workers
    about = {"env": {**os.environ, "PYTHONPATH": str(ROOT), "CLIPMEM_JOBS": "1"}, "stdout": subprocess.PIPE}
    call = [sys.executable, "-P", "-m", "lib.companion.run", *COMMAND]
    workers = [subprocess.Popen([*call, f"{i}/2"], text=True, **about) for i in (1, 2)]
    shown = [worker.communicate()[0] for worker in workers]
    assert all(f"share {i}/2: 1 models, 1 to train" in text for i, text in enumerate(shown, start=1))
    weights = lambda: [(runs.run(recipe) / "weights.safetensors").read_bytes() for recipe in recipes]  # noqa: E731
    assert len(recipes) == 2 and runs.missing(recipes) == []
    there = weights()
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "one"))
    assert there == weights()


@pytest.mark.parametrize("words", [[], ["--force"], ["--force", "--ray", "local"]])
def test_a_model_that_is_there_is_trained_again_where_that_is_asked_for(words):
    if "--ray" in words:
        pytest.importorskip("ray", reason="ray is not installed: ./run_all.sh --ray installs it")
    before = (runs.run(BRIEF) / "DONE").stat().st_mtime
    run.train(parse([*COMMAND, "1/1", *words]), [BRIEF])
    assert ((runs.run(BRIEF) / "DONE").stat().st_mtime > before) == ("--force" in words)


def test_a_ray_cluster_trains_every_model_although_one_of_two_nodes_is_killed():
    ray = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
    nodes = ray.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    recipes = list(f_and_g(replace(TINY, epochs=40, evaluations=1), 0))  # one for each node, some seconds
    other, killed = nodes.add_node(num_cpus=1), []
    assert len(runs.missing(recipes)) == 2  # the data are there before the workers start

    def kill() -> None:
        while len([*(store.root() / "run").glob("*/about.json")]) < 2:  # until both models are being trained
            time.sleep(0.1)
        nodes.remove_node(other, allow_graceful=False)
        killed.append(time.time())

    threading.Thread(target=kill, daemon=True).start()
    run.on_ray(recipes, nodes.address)
    nodes.shutdown()
    assert killed and min((runs.run(recipe) / "DONE").stat().st_mtime for recipe in recipes) > killed[0]
