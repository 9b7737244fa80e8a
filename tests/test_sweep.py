"""Many machines: workers side by side, and a Ray cluster of two nodes, of which one dies."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT, TINY

from lib import run, runs, study, sweep
from lib.execute import NotebookError
from lib.recipes import f_and_g

LONG = replace(TINY, epochs=100, evaluations=1)  # a few seconds


def weights(recipes, monkeypatch, where):
    monkeypatch.setenv("CLIPMEM_RUNS", str(where))
    return [(runs.run(recipe) / "weights.safetensors").read_bytes() for recipe in recipes]


def test_workers_side_by_side_train_every_model_once_and_to_the_same_bits(tmp_path, monkeypatch):
    options = ["smoke", "--only", "02", "--seeds", "2"]
    environ = {**os.environ, "CLIPMEM_RUNS": str(tmp_path / "many"), "PYTHONPATH": str(ROOT), "CLIPMEM_JOBS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lib.run", *options, "--share", f"{i}/2"], env=environ, stdout=subprocess.PIPE
        )
        for i in (1, 2)
    ]
    shown = [worker.communicate()[0].decode() for worker in started]
    assert [worker.returncode for worker in started] == [0, 0]
    assert all(f"share {i}/2: 2 models, 0 in the store" in text for i, text in enumerate(shown, start=1))
    recipes = study.wanted(["02_miscaptioned_memorization"], "smoke", "scenes", 2, "", "")
    assert len(recipes) == 4
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "many"))
    assert runs.missing(recipes) == []
    assert weights(recipes, monkeypatch, tmp_path / "many") == weights(recipes, monkeypatch, tmp_path / "one")


@pytest.mark.parametrize("words", [["--share", "3/2"], ["--share", "0/1"], ["--share", "2"], ["--export", "folder"]])
def test_a_share_or_an_export_that_cannot_be_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        run.parse(words)
    assert ended.value.code == 2 and ("I/N" in capsys.readouterr().err) == (words[0] == "--share")


def test_a_ray_cluster_trains_every_model_although_one_of_two_nodes_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: ./run_all.sh --test installs it")
    from ray.cluster_utils import Cluster

    recipes = list(f_and_g(LONG, 0))  # one for each node
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "cluster"))
    for recipe in recipes:
        runs.run_key(recipe)  # the data are there before the workers start
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other, killed = cluster.add_node(num_cpus=1), []

    def kill() -> None:
        """Kill a node as soon as both models are being trained."""
        while len(list((tmp_path / "cluster" / "run").glob("*/about.json"))) < 2:
            time.sleep(0.2)
        cluster.remove_node(other, allow_graceful=False)
        killed.append(time.time())

    try:
        threading.Thread(target=kill, daemon=True).start()
        sweep.on_ray(recipes, cluster.address)
    finally:
        cluster.shutdown()
    assert killed and runs.missing(recipes) == []
    assert min((runs.run(recipe) / "DONE").stat().st_mtime for recipe in recipes) > killed[0]
    histories = [pd.read_parquet(runs.run(recipe) / "history.parquet") for recipe in recipes]
    assert all(len(history) == LONG.epochs for history in histories)
    assert weights(recipes, monkeypatch, tmp_path / "cluster") == weights(recipes, monkeypatch, tmp_path / "one")


def test_a_cluster_that_does_not_answer_is_named_at_once():
    pytest.importorskip("ray", reason="ray is not installed: ./run_all.sh --test installs it")
    for address in ("127.0.0.1:1", "auto"):
        with pytest.raises(NotebookError, match=f"no Ray cluster answers at '{address}'"):
            sweep.on_ray([TINY], address)
