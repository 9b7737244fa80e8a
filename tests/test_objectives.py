"""What an image is trained to agree with, and what is done to both on the way: each against a plain definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import model as models
from lib import objectives, train
from lib.objectives import Resident
from lib.recipes import Recipe, model_config

WORDS, CONTEXT, START, END = 60, 12, 58, 59


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return models.build(model_config("smoke"), pixels=32, vocabulary=WORDS, context=CONTEXT, seed=1, classes=3)


@pytest.fixture
def views():
    """Two normalised views of six pictures."""
    return torch.randn(2, 6, 3, 32, 32, generator=seeded())


@pytest.fixture
def pairs():
    """Eight pairs, stored in the opposite order; caption c of pair p holds the number 5 p + c alone."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=seeded(3))
    tokens = torch.arange(40).view(8, 5, 1).expand(8, 5, CONTEXT)
    return Resident(images=images, rows=torch.arange(7, -1, -1), tokens=tokens, targets=torch.eye(8))


def sentences(rows):
    """Tokens `[rows, CONTEXT]`: start, words in rising order, end, padding."""
    tokens = torch.zeros(rows, CONTEXT, dtype=torch.long)
    for row, own in enumerate(tokens):
        words = row % (CONTEXT - 1)
        own[: words + 2] = torch.tensor([START, *range(1 + row % 7, 1 + row % 7 + words), END])
    return tokens


def contrastive(a, b, scale):
    """The symmetric loss of CLIP, written out: each row has to find its partner among all of the batch."""
    logits, total = scale * (a @ b.T).detach().double(), 0.0
    for table in (logits, logits.T):
        for i, row in enumerate(table.tolist()):
            total += math.log(sum(math.exp(x) for x in row)) - row[i]
    return total / 2 / len(logits)


def test_caption_and_view_losses_are_the_symmetric_contrastive_loss(model, views):
    scale, tokens = float(model.logit_scale.detach().exp()), sentences(6)
    image, other = (model.encode_image(x, normalize=True) for x in views)
    found = objectives.loss(model, Recipe(), views[0], tokens), objectives.loss(model, Recipe(objective="view"), *views)
    for loss, partner in zip(found, (model.encode_text(tokens, normalize=True), other), strict=True):
        assert float(loss.detach()) == pytest.approx(contrastive(image, partner, scale), abs=1e-4)


def test_the_sigmoid_loss_judges_each_image_and_caption_alone(views):
    sizes = {"pixels": 32, "vocabulary": WORDS, "context": CONTEXT}
    model, tokens = models.build(model_config("smoke"), **sizes, seed=1, sigmoid=True), sentences(6)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(10) and float(model.logit_bias.detach()) == -10
    a, b = model.encode_image(views[0], normalize=True), model.encode_text(tokens, normalize=True)
    expected = 0.0
    for i, row in enumerate((10 * a @ b.T - 10).detach().double().tolist()):
        for j, z in enumerate(row):
            expected += math.log(1 + math.exp(-z if i == j else z)) / 6
    loss = objectives.loss(model, Recipe(objective="sigmoid"), views[0], tokens)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-3)
    loss.backward()
    assert model.logit_bias.grad.abs() > 0


def test_label_loss_is_cross_entropy_with_the_shares_of_the_classes(model, views):
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    ours = objectives.loss(model, Recipe(objective="label"), views[0], shares)
    image, table = model.encode_image(views[0], normalize=True), model.classes / model.classes.norm(dim=1, keepdim=True)
    chances = torch.softmax(model.logit_scale.exp() * image @ table.T, dim=1)
    assert float(ours.detach()) == pytest.approx(float(-(shares * chances.log()).sum().detach()) / 6, abs=1e-4)
    ours.backward()
    assert model.classes.grad.abs().sum() > 0 and model.token_embedding.weight.grad is None


@pytest.mark.parametrize(("image_noise", "text_noise"), [(0.2, 0.0), (0.0, 0.5), (0.1, 1.0)])
def test_noise_falls_on_its_tower_and_follows_the_seed(model, views, image_noise, text_noise):
    recipe, tokens, generator = Recipe(image_noise=image_noise, text_noise=text_noise), sentences(6), seeded(5)
    found = [model.encode_image(views[0], normalize=True), model.encode_text(tokens, normalize=True)]
    for i, length in enumerate((image_noise, text_noise)):
        if length:
            noise = length / 8 * torch.randn(found[i].shape, generator=generator)  # 64 coordinates
            found[i] = F.normalize(found[i] + noise, dim=1)
    expected = contrastive(*found, float(model.logit_scale.detach().exp()))
    losses = (objectives.loss(model, recipe, views[0], tokens, seeded(seed)) for seed in (5, 5, 6))
    ours, again, other = (float(loss.detach()) for loss in losses)
    assert ours == again != other and ours == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize("length", [0.5, 1.0])
def test_noise_has_the_same_length_in_every_width_and_leaves_unit_vectors(width, length):
    vectors = F.normalize(torch.randn(4000, width, generator=seeded(1)), dim=1)
    moved = objectives.noisy(vectors, length, seeded())
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(4000))
    turned = (vectors * moved).sum(dim=1).mean()  # the noise is nearly perpendicular: a turn by atan(length)
    assert float(turned) == pytest.approx((1 + length**2) ** -0.5, abs=0.02)


@pytest.mark.parametrize("frozen", ["", "image", "text"])
def test_a_frozen_tower_gets_no_gradient_and_the_other_one_all_of_its_own(model, views, frozen):
    objectives.loss(model, Recipe(frozen=frozen), views[0], sentences(6)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name == "classes" or train.tower_of(name) == (frozen or "none")), name


def test_partners_are_labels_views_or_captions_of_the_same_pictures(pairs):
    places, shown = torch.tensor([2, 7, 0]), pairs.images[[5, 0, 7]]
    for objective in ("label", "view", "caption"):
        images, partners = objectives.batch(pairs, places, Recipe(objective=objective), seeded())
        generator = seeded()
        assert torch.equal(images, models.random_crops(shown, Recipe().crop, generator))
        expected = {"label": pairs.targets[places], "caption": pairs.tokens[places, 0]}
        assert torch.equal(partners, {**expected, "view": objectives.other_view(shown, generator)}[objective])


def test_captions_take_turns_among_the_first_n(pairs):
    places = torch.arange(8).repeat(25)
    for n, available in ((1, 5), (2, 5), (5, 5), (5, 3)):
        fewer = replace(pairs, tokens=pairs.tokens[:, :available])
        tokens = objectives.batch(fewer, places, Recipe(n_captions=n), seeded())[1]
        counts = torch.bincount(tokens[:, 0] - 5 * places, minlength=5)
        assert (counts[: min(n, available)] > 200 / n / 2).all() and not counts[min(n, available) :].any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_words_are_dropped_at_their_share_and_start_end_and_order_stay(pairs, share):
    tokens = sentences(500)
    spoken = replace(pairs, tokens=tokens[:, None], rows=torch.zeros(500, dtype=torch.long))
    left = objectives.batch(spoken, torch.arange(500), Recipe(word_dropout=share), seeded())[1]
    for before, after in zip(tokens.tolist(), left.tolist(), strict=True):
        length, rest = sum(t > 0 for t in after), iter(before)
        assert after[0] == START and after[length - 1] == END and not any(after[length:])
        assert all(token in rest for token in after[:length]), "a part of the old one, in its order"
    dropped = 1 - ((left > 0).sum() - 1000) / ((tokens > 0).sum() - 1000)
    assert float(dropped) == pytest.approx(share, abs=0.03)


def test_a_cast_scales_each_channel_adds_the_same_to_all_and_is_as_strong_as_asked(pairs):
    plain = models.random_crops(pairs.images, 0.7, seeded(1)).flatten(2).numpy()
    cast = objectives.augment(pairs.images, 0.7, 0.3, seeded(1)).flatten(2).numpy()
    fits = [[np.polyfit(a, b, 1) for a, b in zip(x, y, strict=True)] for x, y in zip(plain, cast, strict=True)]
    factors, added = np.split(np.array(fits), 2, axis=2)
    np.testing.assert_allclose(cast, factors * plain + added, atol=1e-3)
    np.testing.assert_allclose(added, added[:, :1].repeat(3, axis=1), atol=1e-3)
    assert 0.15 < np.abs(factors - 1).max() <= 0.3001 and 0.15 < np.abs(added).max() <= 0.3001
    assert len(np.unique(factors.round(4))) == 24, "each picture and channel has its own"
    assert torch.equal(objectives.augment(pairs.images, 0.7, 0.0, seeded(1)).flatten(2), torch.from_numpy(plain))


def test_the_other_view_is_mirrored_half_of_the_time_and_grey_at_its_share():
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(800, 3, 32, 32)
    view = objectives.other_view(ramp, seeded())
    grey = (view[:, 0] == view[:, 1]).flatten(1).all(dim=1).double().mean()
    mirrored = (view.mean(dim=(1, 2))[:, 0] > view.mean(dim=(1, 2))[:, -1]).double().mean()
    assert float(grey) == pytest.approx(objectives.VIEW_GREY, abs=0.05)
    assert float(mirrored) == pytest.approx(0.5, abs=0.06)
