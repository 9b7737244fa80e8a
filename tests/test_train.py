"""Training: resumed equals uninterrupted, f and g start alike, schedules and records are what they say."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from lib import memorization, models, objectives, store, sweep, tables, train
from lib.recipes import f_and_g, key

FILES = ("weights.safetensors", "history.parquet", "looks.parquet")
KILLED = """
import os, signal, sys
import torch
from pathlib import Path
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from conftest import TINY
from lib import sweep, train
from lib.data import prepare
train.CHECKPOINT_SECONDS = 0
prepared = prepare(TINY.data, Path(sys.argv[1]))
plain = train._checkpoint
def checkpoint(folder, model, optimiser, history, looks):
    plain(folder, model, optimiser, history, looks)
    if len(history) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
train._checkpoint = checkpoint
sweep.run(TINY, prepared)
"""


class Interrupted(Exception):
    pass


def interrupt_after(epochs):
    def note(done, total):
        if done == epochs:
            raise Interrupted

    return note


def same_files(a, b):
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


VARIED = {
    "captions": {"captions": 3, "word_dropout": 0.2, "text_noise": 0.1},
    "label": {"objective": "label", "colour": 0.2},
    "view": {"objective": "view", "epochs": 2, "looks": 1},
    "frozen": {"frozen": "image"},
}


@pytest.mark.parametrize("varied", ["", *VARIED])
def test_resumed_equals_uninterrupted_bit_for_bit(prepared, tiny, tmp_path, monkeypatch, varied):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    recipe = replace(tiny, **VARIED.get(varied, {}))
    donor = train.fresh(replace(recipe, seed=9), prepared).state_dict() if recipe.frozen else None
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.train(recipe, prepared, whole, lambda done, total: None, donor)
    for stop in (1, recipe.epochs - 1) if recipe.epochs > 2 else (1,):
        with pytest.raises(Interrupted):
            train.train(recipe, prepared, parts, interrupt_after(stop), donor)
        assert (parts / "checkpoint.safetensors").is_file()
    train.train(recipe, prepared, parts, lambda done, total: None, donor)
    same_files(whole, parts)
    assert not (parts / "checkpoint.safetensors").exists()


def test_killed_process_continues_and_its_scores_are_the_same(prepared, tiny, tmp_path, runs):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cache"], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    folder = runs / "run" / key(tiny, prepared.fingerprint)
    assert (folder / "checkpoint.safetensors").is_file() and not (folder / store.DONE).exists()
    epochs = []
    train_once = train._epoch
    try:
        train._epoch = lambda recipe, epoch, *rest: (epochs.append(epoch), train_once(recipe, epoch, *rest))[1]
        continued = tables.measured(tiny, prepared, 1)
    finally:
        train._epoch = train_once
    assert epochs == [3]
    train.train(tiny, prepared, tmp_path / "whole", lambda done, total: None)
    same_files(folder, tmp_path / "whole")
    sweep.forget([tiny], prepared)
    store._problems.cache_clear()
    pd.testing.assert_frame_equal(continued, tables.measured(tiny, prepared, 1))


def test_f_and_g_start_from_the_same_weights_and_see_shared_pairs_at_the_same_steps(prepared, tiny):
    f, g = f_and_g(tiny, seed=5)
    a, b = (models.build(r.model, 32, len(prepared.token_ids), 24, r.seed).state_dict() for r in (f, g))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows_f, rows_g = (np.concatenate([prepared.subsets[s] for s in r.trained_on]) for r in (f, g))
    assert len(rows_f) == len(rows_g) and (rows_f[:60] == rows_g[:60]).all() and not set(rows_f[60:]) & set(rows_g[60:])


def test_history_and_looks_record_what_they_say(prepared, tiny, tmp_path):
    train.train(tiny, prepared, tmp_path, lambda done, total: None)
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    for column in ("image_to_text_r10", "probe", "unitmem_1", "unitmem_2"):
        assert history[column].notna().tolist() == [False, True, False, True]
        assert history[column].dropna().between(0, 1).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] < 1.3 * math.log(25)
    looks = pd.read_parquet(tmp_path / "looks.parquet")
    assert looks["epoch"].unique().tolist() == [2, 4]
    final = memorization.measure(_model(tiny, prepared, tmp_path), "caption", prepared, 0, ["candidate", "external"])
    np.testing.assert_allclose(looks.loc[looks["epoch"] == 4, "contrast"], final["contrast"], atol=1e-5)


def _model(recipe, prepared, folder):
    model = models.build(recipe.model, 32, len(prepared.token_ids), prepared.tokens.shape[2], recipe.seed)
    model.load_state_dict(store.read_tensors(folder / "weights.safetensors"))
    return model.eval()


def test_another_seed_gives_another_model(prepared, tiny, tmp_path):
    for seed in (0, 1):
        train.train(replace(tiny, seed=seed, epochs=1), prepared, tmp_path / str(seed), lambda done, total: None)
    assert (tmp_path / "0" / FILES[0]).read_bytes() != (tmp_path / "1" / FILES[0]).read_bytes()


def test_learning_rate_warms_up_and_falls_to_zero(tiny):
    rates = [train.learning_rate(tiny, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(tiny.lr / 10) and max(rates) == pytest.approx(tiny.lr)
    assert np.argmax(rates) in (9, 10) and rates[-1] < 0.01 * tiny.lr
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_loss_on_a_batch_is_open_clips(prepared, tiny):
    model = models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], 0)
    rows = prepared.subsets["shared"][:25]
    images = models.normalise(torch.from_numpy(prepared.pairs.images[rows]))
    tokens = torch.from_numpy(prepared.tokens[rows, 0]).long()
    out = model(images, tokens)
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    target = torch.arange(25)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    ours = train.step(model, torch.optim.SGD(model.parameters(), lr=0.0), objectives.loss(model, tiny, images, tokens))
    assert float(ours) == pytest.approx(float(expected.detach()), abs=1e-5)
