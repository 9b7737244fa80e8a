"""Training: every loss is its definition, resumed equals uninterrupted, and planted memorization is found."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, seeded
from safetensors.torch import load_file
from test_model import CONTEXT, built

from lib import model as models
from lib import scores, train
from lib.data import prepare
from lib.recipes import DataConfig, Recipe, f_and_g

START, END = 58, 59
RECIPES = {
    "plain": TINY,
    "noise": replace(TINY, n_captions=3, token_dropout=0.2, text_noise=0.5, image_noise=0.5),
    "frozen": replace(TINY, frozen="image"),
    "supervised": replace(TINY, objective="supervised", color_jitter=0.2),
    "self-supervised": replace(TINY, objective="self-supervised", evaluations=4),
    "SigLIP": replace(TINY, objective="SigLIP", width=0.5),
}
VIEWS = torch.randn(2, 6, 3, 32, 32, generator=seeded())  # two of six pictures, normalised
IMAGES = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
TOKENS = torch.arange(40).view(8, 5, 1).expand(8, 5, CONTEXT)  # caption c of pair p holds only the number 5 p + c
PAIRS = train.DeviceData(IMAGES, torch.arange(7, -1, -1), TOKENS, torch.eye(8))  # images in the opposite order


def sentences(rows):
    """Return tokens `[rows, CONTEXT]`: start, words in rising order, end, padding."""
    tokens = torch.zeros(rows, CONTEXT, dtype=torch.long)
    for row, own in enumerate(tokens):
        words = row % (CONTEXT - 1)
        own[: words + 2] = torch.tensor([START, *range(1 + row % 7, 1 + row % 7 + words), END])
    return tokens


def contrastive(logits):
    return -(logits.log_softmax(dim=0).diag() + logits.log_softmax(dim=1).diag()).mean() / 2  # symmetric, as CLIP's


def evaluate(model):
    assert not model.training
    score = model.visual.proj.detach()[0, :2].double().numpy()
    return pd.DataFrame({"pair_id": [0, 1], "score": score}), {"asked": 1.0, "none": float("nan")}


def trained(recipe, data, folder, stop_after=0):
    """Train to the end, or until some epochs are over; return the bytes of each file and how many epochs it took."""
    epochs = []

    def on_epoch():
        epochs.append(1)
        if len(epochs) == stop_after:
            raise KeyboardInterrupt

    donor = train.fresh(replace(recipe, seed=9), data).state_dict() if recipe.frozen else None
    with suppress(KeyboardInterrupt):
        train.train(recipe, data, folder, evaluate, on_epoch, donor)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, len(epochs)


@pytest.fixture(autouse=True)
def checkpoint_after_every_epoch(monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_resumed_equals_uninterrupted_bit_for_bit(data, tmp_path, recipe):
    whole, epochs = trained(recipe, data, tmp_path / "whole")
    assert set(whole) == {"weights.safetensors", "history.parquet", "evaluations.parquet"} and epochs == 4
    for more in (1, 2):
        assert [*trained(recipe, data, tmp_path / "run", more)[0]] == ["checkpoint"]
    assert trained(recipe, data, tmp_path / "run") == (whole, 1)


def test_a_damaged_checkpoint_is_noticed_and_training_starts_again(data, tmp_path):
    whole = trained(TINY, data, tmp_path / "whole")
    content = bytearray(trained(TINY, data, tmp_path / "run", 2)[0]["checkpoint"])
    content[-9] ^= 1
    (tmp_path / "run" / "checkpoint").write_bytes(content)
    with pytest.warns(UserWarning, match="checkpoint is damaged"):
        assert trained(TINY, data, tmp_path / "run") == whole


@pytest.mark.parametrize("value", [float("nan"), 40.0])
def test_a_loss_that_diverges_stops_the_training_and_the_last_checkpoint_stays(data, tmp_path, monkeypatch, value):
    (good, _), usual = trained(TINY, data, tmp_path, 2), train.loss
    monkeypatch.setattr(train, "loss", lambda *given: usual(*given) * 0 + value)
    with pytest.raises(FloatingPointError, match=r"loss of epoch 3 is .*seed 0\)"):
        trained(TINY, data, tmp_path)
    assert (tmp_path / "checkpoint").read_bytes() == good["checkpoint"]


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_is_the_donors_and_the_other_one_moves(data, tmp_path, frozen):
    recipe = replace(TINY, frozen=frozen, epochs=1)
    trained(recipe, data, tmp_path)
    donor, start = (train.fresh(replace(recipe, seed=seed), data).state_dict() for seed in (9, 0))
    for name, weights in load_file(tmp_path / "weights.safetensors").items():
        own = not name.startswith("logit_") and name.startswith("visual.") == (frozen == "image")
        assert torch.equal(weights, donor[name] if own else start[name]) == own, name


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = np.array([train.learning_rate(TINY, step, 100) for step in range(100)]) / TINY.lr  # 10 are the warm-up
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    assert (np.diff(rates[10:]) < 0).all() and rates[55] == pytest.approx(0.5) and rates[-1] < 0.001


def test_history_and_evaluations_record_what_they_say(data, tmp_path):
    trained(replace(TINY, evaluations=0), data, tmp_path)
    assert pd.read_parquet(tmp_path / "evaluations.parquet").empty
    trained(TINY, data, tmp_path)
    history, found = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("history", "evaluations"))
    assert history["epoch"].tolist() == [1, 2, 3, 4] and found["epoch"].tolist() == [2, 2, 4, 4]
    assert history["asked"].notna().tolist() == [False, True, False, True]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] < 1.3 * np.log(TINY.batch)
    assert history["lr"].iloc[-1] == train.learning_rate(TINY, 15, 16)  # 100 pairs are 4 steps of 25
    epochs = [(15, 5, [3, 6, 9, 12, 15]), (5, 3, [2, 3, 5]), (2, 6, [1, 2]), (4, 1, [4]), (4, 0, [])]
    assert all(train.evaluation_epochs(replace(TINY, epochs=n, evaluations=m)) == own for n, m, own in epochs)


def test_f_and_g_start_alike_and_share_all_but_their_half_of_the_pool(data):
    f, g = f_and_g(TINY, 5)
    a, b = (train.fresh(recipe, data).parameters() for recipe in (f, g))
    assert all(torch.equal(*both) for both in zip(a, b, strict=True))
    rows_f, rows_g = (data.training_rows(recipe) for recipe in (f, g))
    assert rows_f[:60].tolist() == rows_g[:60].tolist() == data.subsets["shared"].tolist()
    assert sorted([*rows_f[60:], *rows_g[60:]]) == data.subsets["pool"].tolist() and len(rows_f) == len(rows_g)
    assert data.training_rows(f, rows_f[[70, 62]]).tolist() == np.delete(rows_f, [62, 70]).tolist()


def test_gains_biases_and_the_temperature_do_not_decay(data):
    model = train.fresh(TINY, data)
    groups = train.make_optimiser(model, replace(TINY, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    free = ("bias", "ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight", "logit_scale")
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.0 if name.endswith((*free, "class_embedding")) else 0.3), name


def test_planted_memorization_is_found_and_bf16_finds_the_same(tmp_path, monkeypatch):
    config = DataConfig("scenes", 32, 80, 160, 80, 10, 0)
    recipe = replace(TINY, data=config, epochs=15, batch=40, lr=2e-3, evaluations=1)
    data, tables = prepare(recipe.data), []
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("CLIPMEM_PRECISION", precision)
        for one in f_and_g(recipe, 0):
            train.train(one, data, tmp_path / one.trained_on[1], lambda m: (scores.measure(m, recipe, data, 0), {}))
        found = [pd.read_parquet(tmp_path / name / "evaluations.parquet") for name in ("candidate", "independent")]
        table = scores.memorization(scores.in_out(*found, data, 0))
        tables.append(table.merge(data.table[["pair_id", "corruption"]], on="pair_id"))
    mean = tables[0].groupby("member")["clipmem"].mean()  # 0: pairs that neither model has seen
    assert mean[1] > 0.25 and mean[-1] > 0.25 and abs(mean[0]) < 0.2
    groups = [one[one["member"] != 0].groupby("corruption")["clipmem"].mean() for one in tables]
    assert groups[0][["swapped", "inverted"]].mean() > groups[0]["clean"] + 0.1
    assert 0 < (groups[0] - groups[1]).abs().max() < 0.02
    assert tables[0]["clipmem"].corr(tables[1]["clipmem"], method="spearman") > 0.9


def test_every_loss_is_its_definition():
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    model, sigmoid = built(classes=3), built(sigmoid=True)
    image, other = (model.encode_image(x, normalize=True) for x in VIEWS)
    text, scale = model.encode_text(sentences(6), normalize=True), model.logit_scale.exp()
    chances = (scale * image @ F.normalize(model.classes, dim=1).T).softmax(dim=1)
    judged = 10 * sigmoid.encode_image(VIEWS[0], normalize=True) @ sigmoid.encode_text(sentences(6), normalize=True).T
    yes_or_no = torch.sigmoid((2 * torch.eye(6) - 1) * (judged - 10))  # SigLIP starts from temperature 10 and bias -10
    for objective, net, partner, expected in (
        ("CLIP", model, sentences(6), contrastive(scale * image @ text.T)),
        ("self-supervised", model, VIEWS[1], contrastive(scale * image @ other.T)),
        ("supervised", model, shares, -(shares * chances.log()).sum() / 6),
        ("SigLIP", sigmoid, sentences(6), -yes_or_no.log().sum() / 6),
    ):
        torch.testing.assert_close(train.loss(net, Recipe(objective=objective), VIEWS[0], partner), expected)


def test_noise_falls_on_its_tower_with_its_length_and_follows_the_seed():
    model = built()
    for recipe in (Recipe(image_noise=0.2), Recipe(text_noise=0.5), Recipe(image_noise=0.1, text_noise=1.0)):
        found, generator = [model.encode_image(VIEWS[0], True), model.encode_text(sentences(6), True)], seeded(5)
        for i, length in enumerate((recipe.image_noise, recipe.text_noise)):
            if length:
                noise = length / 8 * torch.randn(found[i].shape, generator=generator)  # 64 coordinates
                found[i] = F.normalize(found[i] + noise, dim=1)
        losses = [train.loss(model, recipe, VIEWS[0], sentences(6), seeded(seed)) for seed in (5, 5, 6)]
        torch.testing.assert_close(losses[0], contrastive(model.logit_scale.exp() * found[0] @ found[1].T))
        assert losses[0] == losses[1] != losses[2]


def test_partners_are_labels_views_or_captions_of_the_same_pictures():
    positions, images = torch.tensor([2, 7, 0]), IMAGES[[5, 0, 7]]
    for objective in ("supervised", "self-supervised", "CLIP"):
        generator, (found, partners) = seeded(), train.batch(PAIRS, positions, Recipe(objective=objective), seeded())
        assert torch.equal(found, models.random_crops(images, Recipe().crop, generator))
        expected = {"supervised": PAIRS.targets[positions], "CLIP": TOKENS[positions, 0]}
        assert torch.equal(partners, {**expected, "self-supervised": models.other_view(images, generator)}[objective])


def test_captions_take_turns_among_the_first_n():
    positions = torch.arange(8).repeat(25)
    for n, available in ((1, 5), (2, 5), (5, 3)):
        fewer = replace(PAIRS, tokens=TOKENS[:, :available])
        tokens = train.batch(fewer, positions, Recipe(n_captions=n), seeded())[1]
        counts = torch.bincount(tokens[:, 0] - 5 * positions, minlength=5)
        assert (counts[: min(n, available)] > 200 / n / 2).all() and not counts[min(n, available) :].any()


def test_tokens_are_dropped_at_their_share_and_start_end_and_order_stay():
    tokens = sentences(500)
    left = train.drop_tokens(tokens, 0.3, seeded())
    for before, after in zip(tokens.tolist(), left.tolist(), strict=True):
        length, rest = sum(t > 0 for t in after), iter(before)
        assert after[0] == START and after[length - 1] == END and not any(after[length:])
        assert all(token in rest for token in after[:length]), "a part of the old one, in its order"
    assert int((left > 0).sum()) - 1000 == pytest.approx(0.7 * (int((tokens > 0).sum()) - 1000), rel=0.04)
