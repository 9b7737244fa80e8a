"""UnitMem, ClassMem and distances by layer, against naive forms and on units that were made selective by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import models, objectives, units


@pytest.fixture
def model(prepared):
    return models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], seed=2).eval()


def naive_selectivity(values):
    largest = max(values)
    others = (sum(values) - largest) / (len(values) - 1)
    return (largest - others) / (largest + others) if largest + others > 0 else 0.0


def test_selectivity_equals_the_definition_and_dead_units_have_none():
    means = torch.rand(20, 7, generator=torch.Generator().manual_seed(0)).double()
    means[:, 2] = 0  # dead
    means[:, 3] = 0.4  # alike for all images
    means[:, 4] = torch.arange(20) == 11  # for one image only
    ours = units.selectivity(means)
    np.testing.assert_allclose(ours, [naive_selectivity(unit) for unit in means.T.tolist()], atol=1e-12)
    assert ours[2:5].tolist() == pytest.approx([0, 0, 1]) and ((ours >= 0) & (ours <= 1)).all()


def test_class_means_are_weighted_by_the_share_of_each_class():
    means = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    ours = units.by_class(means, targets)
    expected = []
    for k in (0, 1, 3):  # nothing is of class 2, and the fifth image is of none
        total = sum(float(targets[n, k]) * means[n].numpy() for n in range(6))
        expected.append(total / float(targets[:, k].sum()))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def hooked(model, images):
    """Outputs of every GELU and of every block, [N, positions, ...], in open_clip's own forward pass."""
    hidden, outputs, hooks = [], [], []
    for block in model.visual.transformer.resblocks:
        hooks.append(block.mlp.gelu.register_forward_hook(lambda m, i, out: hidden.append(out)))
        hooks.append(block.register_forward_hook(lambda m, i, out: outputs.append(out)))
    with torch.no_grad():
        model.encode_image(images)
    for hook in hooks:
        hook.remove()
    assert all(x.shape[:2] == (len(images), 17) for x in (*hidden, *outputs))
    return hidden, outputs


def test_activations_equal_a_naive_forward_through_open_clip(prepared, model):
    rows = prepared.subsets["candidate"][:9]
    found = units.activations(model, prepared, rows, 3)
    pictures = torch.from_numpy(prepared.pictures(rows))
    sums = [torch.zeros(9, 256), torch.zeros(9, 256)]
    for a in range(3):
        hidden, _ = hooked(model, models.random_crops(pictures, 0.9, torch.Generator().manual_seed(a)))
        for total, layer in zip(sums, hidden, strict=True):
            for position in range(17):
                total += torch.where(layer[:, position] > 0, layer[:, position], 0.0) / 17 / 3
    assert len(found) == 2
    for ours, expected in zip(found, sums, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_layer_distances_equal_a_naive_loop(prepared, model):
    rows = prepared.subsets["candidate"][:5]
    ours = units.layer_distances(model, prepared, rows, views=3)
    pictures, made = torch.from_numpy(prepared.pictures(rows)), []
    for a in range(3):
        _, outputs = hooked(model, objectives.other_view(pictures, torch.Generator().manual_seed(a)))
        made.append([F.normalize(layer.mean(dim=1), dim=-1) for layer in outputs])
    assert ours.shape == (2, 5)
    for layer in range(2):
        for n in range(5):
            points = [made[a][layer][n] for a in range(3)]
            gaps = [float((points[a] - points[b]).norm()) for a, b in ((0, 1), (0, 2), (1, 2))]
            assert ours[layer, n] == pytest.approx(np.mean(gaps), abs=1e-5)


@pytest.fixture
def black_and_white(prepared):
    """Ten black pictures, of which a test paints some white; the first five are of one class, the others of another."""
    images = np.zeros((10, 3, 32, 32), np.uint8)
    targets = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    pairs = replace(prepared.pairs, images=images)
    return replace(prepared, pairs=pairs, targets=targets, odd=np.zeros(10, bool))


def fire_at(model, images, chosen, unit=3):
    """Make a unit of the last layer fire at the chosen pictures and at no other."""
    block, inputs = model.visual.transformer.resblocks[-1], []
    hook = block.ln_2.register_forward_hook(lambda m, i, out: inputs.append(out))
    with torch.no_grad():
        model.encode_image(models.normalise(torch.from_numpy(images)))
        hook.remove()
        yes, no = inputs[0][chosen].mean(dim=(0, 1)), inputs[0][~chosen].mean(dim=(0, 1))
        weights = 1000 * (yes - no)
        block.mlp.c_fc.weight[unit] = weights
        block.mlp.c_fc.bias[unit] = -weights @ (yes + no) / 2


def of_unit(table, unit=3):
    return table[(table["layer"] == 2) & (table["unit"] == unit)].iloc[0]


def test_a_unit_made_for_one_image_has_unitmem_1(black_and_white, model):
    black_and_white.pairs.images[7] = 255
    fire_at(model, black_and_white.pairs.images, np.arange(10) == 7)
    table = units.table(model, black_and_white, np.arange(10), 2)
    assert of_unit(table)["unitmem"] > 0.99
    assert table["unitmem"].mean() < 0.7 and table[["unitmem", "classmem"]].stack().between(0, 1).all()
    assert table.groupby("layer")["unit"].apply(list).to_dict() == {1: list(range(256)), 2: list(range(256))}


def test_a_unit_made_for_one_class_has_classmem_1_and_little_unitmem(black_and_white, model):
    black_and_white.pairs.images[5:] = 255
    fire_at(model, black_and_white.pairs.images, np.arange(10) >= 5)
    found = of_unit(units.table(model, black_and_white, np.arange(10), 2))
    assert found["classmem"] > 0.99 and found["unitmem"] == pytest.approx((1 - 4 / 9) / (1 + 4 / 9), abs=0.01)


def test_along_training_is_the_mean_of_the_table(prepared, model):
    rows = prepared.subsets["candidate"][:9]
    means = units.table(model, prepared, rows, 2).groupby("layer")["unitmem"].mean()
    found = units.along_training(model, prepared, rows)
    assert found == pytest.approx({f"unitmem_{layer}": value for layer, value in means.items()}, abs=1e-6)
