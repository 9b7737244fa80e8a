"""Retrieval and probes against naive forms and scikit-learn's own, item by item; prompts; sets beside the data."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from photo_sets import columns, picture, write_parquet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from lib import train, utility
from lib.captions import DataError, encode
from lib.decode import decode_image, square
from lib.model import embed_images, embed_texts, encode_text
from lib.utility import Labelled, labelled_sets, linear_probe, main_measure, retrieval, ridge_probe, zero_shot


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def clusters(n, distance, classes=4):
    """Float32 [n, 12] around one centre per class, in a narrow cone as embeddings are, and classes [n]."""
    rng = np.random.default_rng(0)
    centres, stretch = rng.normal(size=(classes, 12)) * distance, np.logspace(0, -3, 12)
    y = rng.integers(0, classes, n)
    x = (centres[y] + rng.normal(size=(n, 12))) * stretch @ rng.normal(size=(12, 12)) + 5
    return F.normalize(torch.from_numpy(x), dim=1).float().numpy(), y


def test_retrieval_equals_sorting_and_a_tie_counts_as_half_a_pair():
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(40, 6, generator=generator), dim=1)
    text = F.normalize(image + 0.5 * torch.randn(40, 6, generator=generator), dim=1)
    found = retrieval(image, text)
    for way, a, b in (("image_to_text", image, text), ("text_to_image", text, image)):
        for k in (1, 10):
            hits = [i in (b @ a[i]).argsort(descending=True)[:k].tolist() for i in range(40)]
            assert found[f"{way}_r{k}"] == pytest.approx(sum(hits) / 40)
    alike = torch.ones(50, 4) / 2  # 49 others tie, so 24.5 of them rank before each pair
    found = list(retrieval(alike, alike, (1, 10, 24, 25)).values())
    assert found[:-1] == [0, 0, 0, 1] * 2 and found[-1] == pytest.approx(np.log2(50 / 25.5))


def test_planted_classes_are_found_and_noise_is_at_chance():
    for distance, least, most in ((4.0, 0.98, 1), (0, 0.15, 0.35)):
        x, y = clusters(900, distance)
        one_hot = np.eye(4, dtype=np.float32)[y]
        assert least <= linear_probe(x[:600], y[:600], x[600:], y[600:]).mean() <= most
        assert least <= ridge_probe(x[:600], one_hot[:600], x[600:], one_hot[600:]) <= most
    assert np.isnan(ridge_probe(x, one_hot, x, 0 * one_hot)) and np.isnan(ridge_probe(x, 0 * one_hot, x, one_hot))
    assert linear_probe(np.ones((50, 3)), y[:50], np.ones((50, 3)), y[:50]).mean() <= 0.5  # all embedded alike


def test_the_linear_probe_is_scikit_learns_row_by_row_and_leaves_unknown_classes_out():
    x, y = clusters(1500, 0.7)
    standard = (x.astype(float) - x[:1000].mean(axis=0, dtype=float)) / x[:1000].std(axis=0, dtype=float)
    exact = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-10).fit(standard[:1000], y[:1000])
    theirs = exact.predict(standard[1000:]) == y[1000:]
    assert 0.3 < theirs.mean() < 0.9 and (linear_probe(x[:1000], y[:1000], x[1000:], y[1000:]) == theirs).all()
    unknown = np.where(np.arange(1500) % 3, y, -1)
    known = unknown >= 0
    found = linear_probe(x[:1000], unknown[:1000], x[1000:], unknown[1000:])
    of_known = linear_probe(x[:1000][known[:1000]], y[:1000][known[:1000]], x[1000:], y[1000:])
    np.testing.assert_array_equal(found, np.where(known[1000:], of_known, np.nan))
    for single in (np.zeros(1500, int), np.minimum(y, 0) - (y > 1)):  # one class; one class and unknown
        alone = linear_probe(x, single, x[:9], y[:9])
        assert len(alone) == 9 and np.isnan(alone).all()


def test_the_ridge_probe_of_several_classes_is_average_precision_and_unknown_images_change_no_accuracy():
    x, y = clusters(900, 4.0, classes=6)
    several = np.stack([y % 2 == 0, y < 3, y == 5, y == 99], axis=1).astype(np.float32)  # the last has no image
    several /= np.maximum(1, several.sum(axis=1, keepdims=True))
    assert ridge_probe(x[:600], several[:600], x[600:], several[600:]) > 0.8
    noise = np.random.default_rng(1).permutation(x)
    chance = np.mean([average_precision_score(several[600:, k] > 0, noise[600:, 0]) for k in range(3)])
    assert abs(ridge_probe(noise[:600], several[:600], noise[600:], several[600:]) - chance) < 0.06
    one_hot, known = np.eye(6, dtype=np.float32)[y], np.arange(900) % 3 > 0
    parts = [part[rows][known[rows]] for rows in (slice(600), slice(600, 900)) for part in (x, one_hot)]
    whole = ridge_probe(*parts)
    one_hot[~known] = 0
    assert ridge_probe(x[:600], one_hot[:600], x[600:], one_hot[600:]) == whole


def test_zero_shot_counts_only_classes_whose_prompts_can_be_read(prepared):
    names, prompt = ("dog", "cat", "aardvark of the steppe", "horse"), "a photo of a {}"
    token_ids = np.unique(np.append(encode([["a photo of a dog cat horse aardvark"]], 1, 77), 0)).astype(np.int64)
    words = replace(prepared, token_ids=token_ids)
    model, short = (train.fresh(TINY, replace(words, tokens=np.zeros((1, 1, context)))) for context in (24, 6))
    prompts = encode([[prompt.format(name)] for name in names], 1, 24)[[0, 1, 3], 0]
    text = encode_text(model, torch.from_numpy(np.searchsorted(token_ids, prompts))).detach()
    classes = np.array([0, 1, 3, 2, -1, 0])  # the aardvark cannot be asked, nor an unknown class; the last is a miss
    found = zero_shot(model, text[[0, 1, 2, 0, 1, 1]], classes, names, token_ids, prompt)
    np.testing.assert_array_equal(found, [1, 1, 1, np.nan, np.nan, 0])
    for one, ids, words in ((model, token_ids[:-2], "one {}"), (short, token_ids, prompt)):  # six tokens are too few
        assert np.isnan(zero_shot(one, text, classes[:3], names, ids, words)).all()


@pytest.fixture
def model(prepared):
    return train.fresh(TINY, prepared).eval()


def red_pictures(n, m):
    """A labelled set of n + m noise pictures, every other one reddish; its classes have no names."""
    y = np.arange(n + m) % 2
    images = np.random.default_rng(0).integers(0, 60, (n + m, 3, 32, 32), dtype=np.uint8)
    images[y == 1, 0] += 190
    return Labelled("red", images[:n], y[:n], images[n:], y[n:], (), "")


def embedded(model, prepared, subset):
    return embed_images(model, prepared.images, prepared.subsets[subset])[0]


def test_every_test_pair_is_searched_in_its_gallery(prepared, model, monkeypatch):
    image, text = embedded(model, prepared, "test"), embed_texts(model, prepared.tokens[prepared.subsets["test"], 0])
    for size, gallery, searched in ((1000, 40, 40), (15, 15, 30), (20, 20, 40)):  # 10 of 40 are in no whole gallery
        monkeypatch.setattr(utility, "GALLERY", size)
        found = utility.utilities(model, prepared, [])
        assert found["bits"].notna().sum() == found["r10"].notna().sum() == searched and len(found) == 40
        for i in range(searched):
            others, k = slice(i // gallery * gallery, (i // gallery + 1) * gallery), i % gallery
            similar = image[others] @ text[others].T
            nearer = [sum((s > one[k]) + (s == one[k]) / 2 for s in one) - 0.5 for one in (similar[k], similar[:, k])]
            assert found["bits"][i] == pytest.approx(np.mean([np.log2(gallery / (n + 1)) for n in nearer]), abs=1e-6)
            assert found["r10"][i] == np.mean([n < 10 for n in nearer])


def test_own_classes_are_probed_and_items_line_up(prepared, model):
    test, y = prepared.subsets["test"], prepared.true_targets.argmax(axis=1)
    image, unknown = embedded(model, prepared, "test"), prepared.true_targets.copy()
    unknown[test[::2]] = 0
    empty = {**prepared.subsets, "probe": test[:0]}
    cases = ((prepared, "probe"), (replace(prepared, subsets=empty), "shared"))
    for ready, subset in (*cases, (replace(prepared, true_targets=unknown), "probe")):
        found = utility.utilities(model, ready, [red_pictures(50, 70)])
        assert found["item"].tolist() == list(range(70)) and set(found.dtypes[1:]) == {np.dtype("float32")}
        seen = embedded(model, prepared, subset).numpy(), y[prepared.subsets[subset]]
        known = ready.true_targets[test].any(axis=1)
        prompts = (prepared.class_names, prepared.token_ids, "a {}")
        probe, asked = linear_probe(*seen, image.numpy(), y[test]), zero_shot(model, image, y[test], *prompts)
        for name, expected in (("probe_labels", probe), ("zero_shot_labels", asked)):
            np.testing.assert_array_equal(found[name][:40], np.where(known, expected, np.nan))
        assert found.loc[40:, ["bits", "r10", "probe_labels", "zero_shot_labels"]].isna().all(axis=None)
        assert (found["probe_red"] == 1).all() and found["zero_shot_red"].isna().all()  # classes without names


def test_the_main_measure_is_a_probe_where_there_are_classes(prepared, model):
    none = replace(prepared, class_names=(), true_targets=prepared.true_targets[:, :0])
    several = replace(prepared, true_targets=np.full_like(prepared.true_targets, 1 / len(prepared.class_names)))
    cases = ((prepared, True, "probe_red"), (none, True, "probe_red"), (prepared, False, "probe_labels"))
    for ready, labelled, name in (*cases, (none, False, ""), (several, False, "")):
        sets = [red_pictures(9, 3)] if labelled else []
        found = utility.utilities(model, ready, sets)
        assert main_measure(ready, sets) == name and list(found)[:3] == ["item", "bits", "r10"]
        assert name in list(found) or list(found)[3:] == []


def write_labelled(folder, name, n, image="image", first=0):
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({image: datasets.Image(), "label": names})
    for part in ("train", "test"):
        images = [{"bytes": picture(first + i), "path": None} for i in range(n)]
        rows = {image: images, "label": [i % 2 for i in range(n)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}_{part}.parquet")


def test_labelled_sets_beside_the_data_are_known_by_their_content(tmp_path, monkeypatch):
    photos = write_parquet(tmp_path / "photos.parquet", columns(2))
    write_labelled(tmp_path, "imagenette", 6)
    write_labelled(tmp_path, "cifar10", 6, image="img")
    first, other = labelled_sets(photos, 8)
    assert [first.name, other.name] == ["imagenette", "cifar10"] and first.class_names == ("cat", "dog")
    assert first.train_images.shape == (6, 3, 8, 8) and other.test_classes.tolist() == [0, 1] * 3
    assert np.array_equal(first.test_images[3], square(decode_image(picture(3)), 8))
    assert first.fingerprint == other.fingerprint
    write_labelled(tmp_path, "imagenette", 6, first=1)  # other pictures, as many
    again, same = labelled_sets(photos, 8)
    assert not np.array_equal(again.test_images, first.test_images) and again.fingerprint != first.fingerprint
    assert same.fingerprint == other.fingerprint and labelled_sets("scenes", 8) == []
    monkeypatch.setattr(utility, "LIMITS", {"train": 3, "test": None})
    assert [(len(one.train_images), len(one.test_images)) for one in labelled_sets(photos, 8)] == [(3, 6)] * 2


def test_a_missing_set_is_left_out_and_a_broken_one_is_named(tmp_path):
    photos = write_parquet(tmp_path / "photos.parquet", columns(2))
    write_labelled(tmp_path, "imagenette", 3)
    with pytest.warns(UserWarning, match=r"'cifar10'.*: put cifar10_train\.parquet and cifar10_test\.parquet") as said:
        (found,) = labelled_sets(photos, 8)
    assert found.name == "imagenette" and str(tmp_path) in str(said[0].message)
    write_parquet(tmp_path / "imagenette_train.parquet", {"image": columns(2)["image"], "class": [0, 1]})
    with pytest.raises(DataError, match=r"imagenette_train\.parquet: expected columns 'image' and 'label'"):
        labelled_sets(photos, 8)
