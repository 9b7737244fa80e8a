"""Training: resumed equals uninterrupted, what is recorded is what it says, and planted memorization is found."""

import ast
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY
from safetensors.torch import load_file

from lib import runs, scores, train
from lib.data import prepare
from lib.recipes import Data, f_and_g

FILES = {"weights.safetensors", "history.parquet", "evaluations.parquet"}
NOISY = replace(TINY, n_captions=3, word_dropout=0.2, text_noise=0.5, image_noise=0.5)
FROZEN = replace(TINY, frozen="image")
LABEL, VIEW = replace(TINY, objective="label", colour=0.2), replace(TINY, objective="view", evaluations=4)
SIGMOID = replace(TINY, objective="sigmoid", width=0.5)
REGROUPED = replace(TINY, regrouped=0.1, remove_by="clipmem", n_captions=3, text_noise=0.5)
TUNED = replace(TINY, remove=0.1, remove_by="clipmem", finetuned=4, epochs=9)
RECIPES = {"plain": TINY, "noise": NOISY, "frozen": FROZEN, "label": LABEL, "view": VIEW, "sigmoid": SIGMOID}
RECIPES |= {"regrouped": REGROUPED, "tuned": TUNED}


def evaluate(model):
    """Return a table of scores, and numbers, of a model; quickly."""
    assert not model.training
    score = model.visual.proj.detach()[0, :2].double().numpy()
    table = pd.DataFrame({"pair_id": [0, 1], "subset": "candidate", "score": score})
    return table, {"asked": 1.0, "none": float("nan")}


def trained(recipe, prepared, folder, stop_after=0):
    """Train until an epoch is over, or to the end; return the bytes of each file and the epochs that were reported."""
    epochs = []

    def on_progress(share):
        epochs.append(round(share * train.schedule(recipe).epochs))
        if epochs[-1] == stop_after:
            raise KeyboardInterrupt

    starts = recipe.frozen or recipe.finetuned
    donor = train.fresh(replace(recipe, seed=9), prepared).state_dict() if starts else None
    suspicious = train.training_rows(recipe, prepared)[:10] if recipe.remove_by else None
    train.train(recipe, prepared, folder, evaluate, on_progress, donor, suspicious)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, epochs


@pytest.fixture
def stopped(prepared, tmp_path, monkeypatch):
    """Return how to leave a training after an epoch: the folder, which is always the same."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)

    def stop(recipe, epoch):
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, prepared, tmp_path / "run", epoch)
        assert (tmp_path / "run" / "checkpoint").is_file()
        return tmp_path / "run"

    return stop


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_resumed_equals_uninterrupted_bit_for_bit(prepared, tmp_path, stopped, recipe):
    whole, epochs = trained(recipe, prepared, tmp_path / "whole")
    assert set(whole) == FILES and epochs == [1, 2, 3, 4]
    for epoch in (1, 3):
        folder = stopped(recipe, epoch)
    assert trained(recipe, prepared, folder) == (whole, [4])


def test_a_damaged_checkpoint_starts_anew_with_a_warning(prepared, tmp_path, stopped):
    whole, _ = trained(TINY, prepared, tmp_path / "whole")
    for damage in ("flipped", "halved", "emptied", "of another run"):
        folder = stopped(TINY, 2)
        content = bytearray((folder / "checkpoint").read_bytes())
        content[-9] ^= damage == "flipped"
        length = {"halved": len(content) // 2, "emptied": 0}.get(damage, len(content))
        (folder / "checkpoint").write_bytes(content[:length])
        folder = folder.rename(tmp_path / "other") if damage == "of another run" else folder
        with pytest.warns(UserWarning, match="checkpoint is damaged, or belongs to another run; training starts from"):
            assert trained(TINY, prepared, folder) == (whole, [1, 2, 3, 4])


@pytest.mark.parametrize("value", [float("nan"), 40.0])
def test_a_loss_that_diverges_stops_with_its_cause_and_keeps_the_last_good_checkpoint(prepared, stopped, value):
    folder, usual = stopped(TINY, 2), train.step
    good = (folder / "checkpoint").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "step", lambda *given: usual(*given) * 0 + value)
        with pytest.raises(FloatingPointError, match=r"epoch 3 is (nan|40), .*seed 0, learning rate .* Lower `lr`"):
            trained(TINY, prepared, folder)
    assert (folder / "checkpoint").read_bytes() == good
    assert trained(TINY, prepared, folder)[1] == [3, 4]


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_is_the_donors_to_the_bit_and_the_other_one_moves(prepared, tmp_path, frozen):
    recipe = replace(TINY, frozen=frozen, epochs=1)
    trained(recipe, prepared, tmp_path)
    donor, start = (train.fresh(replace(recipe, seed=seed), prepared).state_dict() for seed in (9, 0))
    for name, weights in load_file(tmp_path / "weights.safetensors").items():
        own = train.tower_of(name) == frozen
        assert torch.equal(weights, donor[name] if own else start[name]) == own, name


def test_regrouped_pairs_fill_batches_of_their_own_which_alone_have_captions_and_noise(prepared, monkeypatch):
    rows, batches = train.training_rows(REGROUPED, prepared), []
    pairs = train.resident(prepared, rows, torch.device("cpu"))
    pairs = replace(pairs, regrouped=torch.from_numpy(np.isin(rows, rows[:10])))

    def seen(model, recipe, images, partners, generator):
        batches[-1].append((recipe.n_captions, recipe.text_noise))
        return usual_loss(model, recipe, images, partners, generator)

    def drawn(pairs, places, recipe, generator):
        batches.append([set(places.tolist())])
        return usual_batch(pairs, places, recipe, generator)

    usual_loss, usual_batch = train.loss, train.batch
    monkeypatch.setattr(train, "loss", seen)
    monkeypatch.setattr(train, "batch", drawn)
    model = train.fresh(REGROUPED, prepared).train()
    train.run_epoch(REGROUPED, 0, pairs, model, train.make_optimiser(model, REGROUPED))
    special = set(range(10))
    assert [places for places, how in batches if how == (3, 0.5)] == [special]
    assert len(batches) == 1 + 90 // 25 and all(not places & special for places, how in batches if how == (1, 0.0))


def test_fine_tuning_starts_where_another_model_ended_without_the_removed_pairs(prepared, tmp_path):
    still = replace(TUNED, finetuned=1, lr=0.0)
    trained(still, prepared, tmp_path)
    donor = train.fresh(replace(still, seed=9), prepared).state_dict()
    written = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(written[name], weights) for name, weights in donor.items())
    assert len(pd.read_parquet(tmp_path / "history.parquet")) == 1


def test_the_learning_rate_warms_up_and_falls_to_zero():
    recipe = replace(TINY, warmup=0.1)
    rates = [train.learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([recipe.lr * n / 10 for n in range(1, 11)]) and rates[10] == recipe.lr
    assert all(a > b for a, b in pairwise(rates[10:])) and rates[-1] < 0.001 * recipe.lr
    assert rates[55] == pytest.approx(recipe.lr / 2)


def test_evaluations_are_evenly_spaced_with_the_last_epoch():
    assert train.evaluation_epochs(replace(TINY, epochs=15, evaluations=5)) == [3, 6, 9, 12, 15]
    assert train.evaluation_epochs(replace(TINY, epochs=5, evaluations=3)) == [2, 3, 5]
    assert train.evaluation_epochs(replace(TINY, epochs=2, evaluations=6)) == [1, 2]
    once = (replace(TINY, evaluations=1), replace(TINY, remove=0.1, remove_by="random"))
    assert [train.evaluation_epochs(recipe) for recipe in once] == [[4], [4]]


def test_history_and_evaluations_record_what_they_say(prepared, tmp_path):
    trained(TINY, prepared, tmp_path)
    history, found = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("history", "evaluations"))
    assert history["epoch"].tolist() == [1, 2, 3, 4] and found["epoch"].tolist() == [2, 2, 4, 4]
    assert history["asked"].notna().tolist() == [False, True, False, True]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] < 1.3 * np.log(TINY.batch)
    last = train.learning_rate(TINY, 15, 16)  # 100 pairs are 4 steps of 25
    assert history["lr"].iloc[-1] == last and history["logit_scale"].between(1, 100).all()


def test_f_and_g_start_alike_and_see_shared_pairs_at_the_same_steps(prepared):
    f, g = f_and_g(TINY, 5)
    a, b = (train.fresh(recipe, prepared).state_dict() for recipe in (f, g))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows_f, rows_g = (train.training_rows(recipe, prepared) for recipe in (f, g))
    assert rows_f[:60].tolist() == rows_g[:60].tolist() == prepared.subsets["shared"].tolist()
    assert len(rows_f) == len(rows_g) == 100 and not set(rows_f[60:]) & set(rows_g[60:])
    assert set(rows_f[60:]) | set(rows_g[60:]) == set(prepared.subsets["pool"])
    assert train.training_rows(f, prepared, rows_f[[70, 62]]).tolist() == np.delete(rows_f, [62, 70]).tolist()


def test_gains_biases_and_the_temperature_do_not_decay(prepared):
    model = train.fresh(TINY, prepared)
    groups = train.make_optimiser(model, replace(TINY, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decay.pop(id(p)) for name, p in model.named_parameters()}
    free = ("bias", "ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight", "logit_scale")
    for name, own in found.items():
        assert own == (0.0 if name.endswith((*free, "class_embedding")) else 0.3), name


def test_a_step_keeps_the_temperature_within_its_limits(prepared):
    model = train.fresh(TINY, prepared)
    for start, end in ((10.0, np.log(100)), (-10.0, 0.0)):
        torch.nn.init.constant_(model.logit_scale, start)
        value = train.step(model, train.make_optimiser(model, TINY), model.logit_scale * 1.0)
        assert value.tolist() == start and model.logit_scale.tolist() == pytest.approx(end)


PLANTED = replace(TINY, data=Data("scenes", 32, 80, 160, 80, 10, 0), epochs=15, batch=40, lr=2e-3, evaluations=1)


def clipmem(recipe, folder):
    """Train f and g; return pair_id, subset, member, corruption and clipmem."""
    prepared, found = prepare(recipe.data), []
    for one in f_and_g(recipe, 0):
        own = folder / one.trained_on[1]
        train.train(one, prepared, own, lambda model: (scores.measure(model, recipe, prepared, 0), {}))
        found.append(pd.read_parquet(own / "evaluations.parquet"))
    table = runs.inside_outside(*found, prepared, 0)
    table["clipmem"] = table["contrast_in"] - table["contrast_out"]
    return table.merge(prepared.table[["pair_id", "corruption"]], on="pair_id")


def test_planted_memorization_is_found_and_bf16_finds_the_same(tmp_path, monkeypatch):
    """CLIPMem of the pool lies above that of pairs that neither model has seen."""
    tables = []
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("CLIPMEM_PRECISION", precision)
        tables.append(clipmem(PLANTED, tmp_path / precision))
    table, other = tables
    mean = table.groupby("member")["clipmem"].mean()
    assert mean[1] > 0.25 and mean[-1] > 0.25 and abs(mean[0]) < 0.2
    groups = [one[one["member"] != 0].groupby("corruption")["clipmem"].mean() for one in tables]
    assert groups[0][["swapped", "inverted"]].mean() > groups[0]["clean"] + 0.1
    assert not table["clipmem"].equals(other["clipmem"]) and (groups[0] - groups[1]).abs().max() < 0.02
    assert table["clipmem"].corr(other["clipmem"], method="spearman") > 0.9


def test_training_knows_nothing_of_scores():
    tree = ast.parse((ROOT / "lib" / "train.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {f"{getattr(node, 'module', '')}.{alias.name}" for node in nodes for alias in node.names}
    assert "lib.store" in imported and not {name for name in imported if "scores" in name or "utility" in name}
