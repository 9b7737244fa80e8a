"""What an image is trained to agree with, and what is done to it on the way: each against a naive form."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from lib import models, objectives, store, sweep, train
from lib.objectives import Resident
from lib.recipes import Recipe, f_and_g, key, needed_before

WORDS, CONTEXT, START, END = 60, 12, 58, 59


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return models.build("smoke", 32, WORDS, CONTEXT, seed=1, classes=3)


@pytest.fixture
def views():
    return torch.randn(2, 6, 3, 32, 32, generator=seeded())


def sentences(rows, seed=0, shortest=0):
    """Tokens [rows, CONTEXT]: start, a few words, end, padding."""
    tokens = torch.zeros(rows, CONTEXT, dtype=torch.long)
    for row, own in enumerate(tokens):
        words = shortest + int(torch.randint(CONTEXT - 1 - shortest, (1,), generator=seeded(seed * 10_000 + row)))
        own[: words + 2] = torch.tensor([START, *range(1 + row % 7, 1 + row % 7 + words), END])
    return tokens


@pytest.fixture
def pairs():
    """Eight pictures with five captions each; caption c of pair p is the number 5 p + c, and nothing else."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
    tokens = torch.arange(40).view(8, 5, 1).expand(8, 5, CONTEXT)
    targets = torch.eye(8)
    return Resident(images, torch.arange(8), tokens, targets, torch.arange(8) == 2)


# --- losses ---


def test_label_loss_equals_a_naive_cross_entropy_on_soft_targets(model, views):
    targets = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    ours = objectives.loss(model, Recipe(objective="label"), views[0], targets)
    image, scale, total = model.encode_image(views[0], normalize=True), float(model.logit_scale.detach().exp()), 0.0
    for one, shares in zip(image, targets, strict=True):
        logits = [scale * float((one @ row / row.norm()).detach()) for row in model.classes]
        partition = sum(np.exp(logits))
        total -= sum(float(share) * np.log(np.exp(x) / partition) for share, x in zip(shares, logits, strict=True))
    assert float(ours.detach()) == pytest.approx(total / 6, abs=1e-4)
    ours.backward()
    assert model.classes.grad.abs().sum() > 0 and model.token_embedding.weight.grad is None


def test_view_loss_is_open_clips_on_the_two_views(model, views):
    ours = objectives.loss(model, Recipe(objective="view"), *views)
    a, b = (model.encode_image(x, normalize=True) for x in views)
    expected = ClipLoss()(a, b, model.logit_scale.exp())
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    grads = [torch.autograd.grad(x, model.visual.conv1.weight)[0] for x in (ours, expected)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


# --- partners ---


def test_partners_are_labels_views_or_captions_of_the_same_pictures(pairs):
    places = torch.tensor([2, 7, 0])
    for objective in objectives.OBJECTIVES:
        images, partners = objectives.batch(pairs, places, Recipe(objective=objective), seeded())
        shown = pairs.images[places].clone()
        shown[0] = 255 - shown[0]  # an odd picture is its negative
        generator = seeded()
        assert torch.equal(images, models.random_crops(shown, Recipe().crop, generator))
        expected = {"label": pairs.targets[places], "caption": pairs.tokens[places, 0]}
        expected["view"] = objectives.other_view(shown, generator)
        assert torch.equal(partners, expected[objective])


def test_captions_take_turns_among_the_first_n(pairs):
    places = torch.arange(8).repeat(25)
    for n, available in ((2, 5), (4, 5), (5, 5), (5, 3)):
        fewer = replace(pairs, tokens=pairs.tokens[:, :available])
        images, tokens = objectives.batch(fewer, places, Recipe(captions=n), seeded())
        which = tokens[:, 0] - 5 * places
        counts = torch.bincount(which, minlength=5)
        assert (counts[: min(n, available)] > 200 / n / 2).all() and not counts[min(n, available) :].any()
        assert torch.equal(images, objectives.batch(pairs, places, Recipe(), seeded())[0])


def test_one_caption_draws_nothing_more_than_the_crops(pairs):
    ours, crops = seeded(5), seeded(5)
    _, tokens = objectives.batch(pairs, torch.arange(8), Recipe(), ours)
    models.random_crops(pairs.images, Recipe().crop, crops)
    assert torch.equal(ours.get_state(), crops.get_state()) and torch.equal(tokens, pairs.tokens[:, 0])
    objectives.batch(pairs, torch.arange(8), Recipe(captions=2), ours)
    models.random_crops(pairs.images, Recipe().crop, crops)
    assert not torch.equal(ours.get_state(), crops.get_state())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_words_are_dropped_at_their_share_and_the_rest_keeps_its_order(share):
    tokens = sentences(400)
    left = objectives.drop_words(tokens, share, seeded())
    words_before = words_after = 0
    for before, after in zip(tokens.tolist(), left.tolist(), strict=True):
        length = sum(t > 0 for t in after)
        assert len(after) == CONTEXT and after[0] == START and after[length - 1] == END and not any(after[length:])
        rest = iter(before)
        assert all(token in rest for token in after[:length])  # a subsequence
        words_before, words_after = words_before + sum(t > 0 for t in before) - 2, words_after + length - 2
    assert 1 - words_after / words_before == pytest.approx(share, abs=0.03)
    assert torch.equal(left, objectives.drop_words(tokens, share, seeded()))


def test_a_batch_drops_words_only_where_asked(pairs):
    tokens = sentences(8, shortest=9)
    spoken = replace(pairs, tokens=tokens[:, None])
    found = [objectives.batch(spoken, torch.arange(8), Recipe(word_dropout=p), seeded())[1] for p in (0.0, 0.5)]
    assert torch.equal(found[0], tokens) and (found[1] > 0).sum() < (tokens > 0).sum()


# --- pictures ---


def test_no_colour_leaves_crops_as_they_are(pairs):
    ours, crops = seeded(1), seeded(1)
    plain = models.random_crops(pairs.images, 0.7, crops)
    assert torch.equal(objectives.augment(pairs.images, 0.7, 0.0, ours), plain)
    assert torch.equal(ours.get_state(), crops.get_state())


def test_a_cast_scales_each_channel_and_adds_the_same_to_all(pairs):
    whole = models.random_crops(pairs.images, 1.0, seeded(1))
    cast = objectives.augment(pairs.images, 1.0, 0.3, seeded(1))
    fits = np.array([[np.polyfit(a.ravel(), b.ravel(), 1) for a, b in zip(x, y, strict=True)]
                     for x, y in zip(whole.numpy(), cast.numpy(), strict=True)])  # fmt: skip
    for x, y, (one, two, three) in zip(whole.numpy(), cast.numpy(), fits, strict=True):
        for a, b, (factor, added) in zip(x, y, (one, two, three), strict=True):
            np.testing.assert_allclose(b, factor * a + added, atol=1e-3)
    factors, added = fits[..., 0], fits[..., 1]
    assert factors.min() > 0.7 - 1e-3 and factors.max() < 1.3 + 1e-3 and factors.std() > 0.1
    np.testing.assert_allclose(added, added[:, :1].repeat(3, axis=1), atol=1e-3)
    assert np.abs(added).max() < 0.3 + 1e-3 and added[:, 0].std() > 0.05


def test_the_other_view_is_mirrored_half_of_the_time_and_grey_at_its_share(monkeypatch):
    images = torch.randint(0, 256, (600, 3, 8, 8), dtype=torch.uint8, generator=seeded(3))
    strong = objectives.other_view(images, seeded())
    grey = (strong[:, 0] == strong[:, 1]).flatten(1).all(dim=1).double().mean()
    assert float(grey) == pytest.approx(objectives.VIEW_GREY, abs=0.06)
    for name, value in {"VIEW_CROP": 1.0, "VIEW_COLOUR": 0.0, "VIEW_GREY": 0.0}.items():
        monkeypatch.setattr(objectives, name, value)
    x, plain = objectives.other_view(images, seeded()), models.normalise(images)
    kept, mirrored = (torch.isclose(x, y, atol=1e-3).flatten(1).all(dim=1) for y in (plain, plain.flip(3)))
    assert (kept ^ mirrored).all() and float(mirrored.double().mean()) == pytest.approx(0.5, abs=0.08)


# --- noise ---


@pytest.fixture
def compared(monkeypatch, model, views):
    """What the loss of a recipe compares: image and text embeddings, with a seed of the noise."""

    def of(recipe, seed):
        seen = []
        monkeypatch.setattr(objectives, "ClipLoss", lambda: lambda image, text, scale: seen.append((image, text)))
        objectives.loss(model, recipe, views[0], sentences(6), seeded(seed))
        return seen[0]

    return of


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("at", ["before", "after"])
def test_noise_falls_on_its_tower_at_its_place(compared, model, views, tower, at):
    recipe, sigma = Recipe(**{f"{tower}_noise": 0.2}, noise_at=at), 0.2
    plain, ours, again, other = compared(Recipe(), 0), compared(recipe, 0), compared(recipe, 0), compared(recipe, 1)
    noisy, clean = (1, 0) if tower == "text" else (0, 1)
    assert torch.equal(ours[clean], plain[clean])
    assert torch.equal(ours[noisy], again[noisy]) and not torch.equal(ours[noisy], other[noisy])
    raw = model.encode_text(sentences(6)) if tower == "text" else model.encode_image(views[0])
    drawn = sigma * torch.randn(raw.shape, generator=seeded())
    if at == "before":
        expected = F.normalize(raw + drawn, dim=-1)
        torch.testing.assert_close(ours[noisy].norm(dim=1), torch.ones(6))
    else:
        expected = F.normalize(raw, dim=-1) + drawn
        assert float((ours[noisy] - plain[noisy]).detach().std()) == pytest.approx(sigma, rel=0.15)
        assert ours[noisy].norm(dim=1).min() > 1.2  # 64 coordinates: about the root of 1 + 64 x .04
    torch.testing.assert_close(ours[noisy], expected, atol=1e-5, rtol=1e-4)


def test_noise_is_part_of_training_and_its_seed_is_the_runs(prepared, trained):
    noisy = replace(trained, epochs=1, looks=1, text_noise=0.2)
    folder = sweep.run(noisy, prepared)
    first = (folder / "weights.safetensors").read_bytes()
    assert first != (sweep.run(replace(noisy, text_noise=0.0), prepared) / "weights.safetensors").read_bytes()
    again = folder.parent / "again"
    again.mkdir()
    train.train(noisy, prepared, again, lambda done, total: None)
    assert (again / "weights.safetensors").read_bytes() == first


# --- frozen towers ---


@pytest.mark.parametrize(("frozen", "free"), [("image", "text"), ("text", "image")])
def test_a_frozen_tower_is_gs_to_the_bit_and_the_other_one_moves(prepared, trained, frozen, free):
    recipe = replace(trained, frozen=frozen)
    ours = store.read_tensors(sweep.run(recipe, prepared) / "weights.safetensors")
    _, g = f_and_g(trained, 0)
    donor, start = store.read_tensors(sweep.run(g, prepared) / "weights.safetensors"), train.fresh(recipe, prepared)
    towers = {name: train.tower_of(name) for name in ours}
    assert all(torch.equal(ours[name], donor[name]) for name, tower in towers.items() if tower == frozen)
    moved = [name for name, tower in towers.items() if tower == free]
    assert len(moved) > 20 and sum(tower == frozen for tower in towers.values()) > 20
    weights = dict(start.named_parameters())
    for name in (n for n in moved if n in weights and weights[n].ndim > 1 and "positional" not in n):
        assert not torch.equal(ours[name], donor[name]) and not torch.equal(ours[name], weights[name].detach()), name


def test_every_parameter_belongs_to_the_tower_that_reads_it(model):
    image = model.encode_image(torch.randn(2, 3, 32, 32)).sum()
    reached = torch.autograd.grad(image, list(model.parameters()), allow_unused=True)
    read = {name for (name, _), grad in zip(model.named_parameters(), reached, strict=True) if grad is not None}
    assert read == {name for name, _ in model.named_parameters() if train.tower_of(name) == "image"}
    assert train.tower_of("logit_scale") == ""


# --- removal ---


def naive_worst(rule, prepared, f, g):
    """Candidates from the most to the least suspicious, from what the store holds of f and g."""
    looks = []
    for recipe in (f, g):
        table = pd.read_parquet(sweep.run(recipe, prepared) / "looks.parquet")
        looks.append(table[table["epoch"] == recipe.epochs].set_index("pair_id").to_dict("index"))
    of_f, of_g = looks
    suspicion = {
        "clipmem": lambda i: of_f[i]["contrast"] - of_g[i]["contrast"],
        "similarity": lambda i: -of_f[i]["similarity"],
        "loss": lambda i: of_f[i]["loss"],
    }[rule]
    rows = prepared.subsets["candidate"].tolist()
    return sorted(rows, key=lambda row: suspicion(prepared.pairs.pair_ids[row]), reverse=True)


@pytest.mark.parametrize("rule", ["clipmem", "similarity", "loss"])
def test_exactly_the_worst_candidates_are_left_out(prepared, trained, rule):
    recipe = replace(trained, remove=7, remove_by=rule)
    rows = sweep.left_out(recipe, prepared)
    assert rows.tolist() == naive_worst(rule, prepared, *f_and_g(trained, 0))[:7]
    left = train.training_rows(recipe, prepared, rows)
    whole = train.training_rows(recipe, prepared)
    assert left.tolist() == [row for row in whole.tolist() if row not in rows] and len(left) == len(whole) - 7


def test_training_sees_none_of_the_removed(prepared, trained, runs, monkeypatch):
    recipe, seen, resident = replace(trained, remove=7, remove_by="loss"), [], train.resident
    gone = sweep.left_out(recipe, prepared)
    monkeypatch.setattr(train, "resident", lambda p, rows, where: seen.append(rows) or resident(p, rows, where))
    train.train(recipe, prepared, runs, lambda done, total: None, left_out=gone)
    assert len(seen) == 1 and sorted([*seen[0], *gone]) == sorted(train.training_rows(recipe, prepared))
    assert pd.read_parquet(runs / "looks.parquet")["epoch"].unique().tolist() == [recipe.epochs]


def test_random_removal_is_a_function_of_the_seed_and_needs_no_model(prepared, tiny):
    recipes = [replace(tiny, seed=seed, remove=7, remove_by="random") for seed in (0, 0, 1)]
    found = [sweep.left_out(recipe, prepared).tolist() for recipe in recipes]
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 7 and set(found[0]) <= set(prepared.subsets["candidate"])
    assert not needed_before(recipes[0]) and not list(store.root().glob("run/*"))
    assert sweep.left_out(tiny, prepared) is None


@pytest.mark.parametrize("rule", ["clipmem", "similarity", "loss", "random"])
def test_g_of_a_removal_is_g_of_the_base(tiny, rule):
    removal = replace(tiny, remove=7, remove_by=rule)
    assert key(f_and_g(removal, 3)[1], "x") == key(f_and_g(tiny, 3)[1], "x")
    assert key(f_and_g(removal, 3)[0], "x") != key(f_and_g(tiny, 3)[0], "x")
    assert needed_before(f_and_g(removal, 3)[0]) == ([] if rule == "random" else list(f_and_g(tiny, 3)))
