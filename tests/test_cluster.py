"""Many machines: workers that share the store, and a Ray cluster of two nodes, of which one is killed."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from conftest import BRIEF, ROOT, TINY

from lib import runs, store
from lib.companion import cluster
from lib.recipes import f_and_g

ORDER = {"notebooks": ["02_miscaptioned_memorization"], "seeds": 1, "where": ("smoke", "scenes", "", ""), "ray": ""}
COMMAND = [sys.executable, "-P", "-m", "lib.companion.cluster"]


def test_two_workers_train_every_model_once_and_to_the_same_bits(tmp_path, monkeypatch):
    recipes = runs.wanted(ORDER["notebooks"], 1, *ORDER["where"])  # the data are there before the workers start
    orders = [json.dumps(ORDER | {"share": f"{i}/2", "force": False}) for i in (1, 2)]
    about = {"env": {**os.environ, "PYTHONPATH": str(ROOT), "CLIPMEM_JOBS": "1"}, "stdout": subprocess.PIPE}
    workers = [subprocess.Popen([*COMMAND, order], text=True, **about) for order in orders]
    shown = [worker.communicate()[0] for worker in workers]
    assert all(f"share {i}/2: 1 models, 1 to train" in text for i, text in enumerate(shown, start=1))
    weights = lambda: [(runs.run(recipe) / "weights.safetensors").read_bytes() for recipe in recipes]  # noqa: E731
    assert len(recipes) == 2 and runs.missing(recipes) == []
    there = weights()
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "one"))
    assert there == weights()


@pytest.mark.parametrize("ray", ["", "local"])
def test_force_trains_again(monkeypatch, ray):
    if ray:
        pytest.importorskip("ray", reason="ray is not installed: ./run_all.sh --ray installs it")
    monkeypatch.setattr(runs, "wanted", lambda *_: [BRIEF])
    before = (runs.run(BRIEF) / "DONE").stat().st_mtime
    for force in (False, True):
        cluster.train(ORDER | {"share": "1/1", "force": force, "ray": ray})
        assert ((runs.run(BRIEF) / "DONE").stat().st_mtime > before) == force


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
    cluster.on_ray(recipes, nodes.address)
    nodes.shutdown()
    assert killed and min((runs.run(recipe) / "DONE").stat().st_mtime for recipe in recipes) > killed[0]
    with pytest.raises(OSError, match="refused"):  # at once
        cluster.on_ray(recipes, nodes.address)
