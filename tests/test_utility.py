"""Retrieval and probes against naive forms and scikit-learn's own, item by item; prompts; sets beside the data."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from sklearn.metrics import average_precision_score
from test_data import columns, picture, write_parquet

from lib import train, utility
from lib.model import embed_images, embed_texts
from lib.photos import DataError
from lib.utility import Labelled, labelled_sets, linear_probe, probe_hits, retrieval


def clusters(n, distance, classes=4):
    """Float32 [n, 12] around one centre per class, in a narrow cone as embeddings are, and classes [n]."""
    rng = np.random.default_rng(0)
    centres, y = rng.normal(size=(classes, 12)) * distance, rng.integers(0, classes, n)
    x = (centres[y] + rng.normal(size=(n, 12))) * np.logspace(0, -3, 12) @ rng.normal(size=(12, 12)) + 5
    return F.normalize(torch.from_numpy(x), dim=1).float().numpy(), y


def test_in_retrieval_a_tie_counts_as_half_a_pair():
    alike = torch.ones(50, 4) / 2  # 49 others tie, so 24.5 of them rank before each pair
    found = retrieval(alike, alike)
    assert (found["r10"] == 0).all() and found["bits"] == pytest.approx(np.full(50, np.log2(50 / 25.5)))


def test_the_probe_finds_planted_classes_and_is_at_chance_without_them():
    for distance, least, most in ((4.0, 0.98, 1), (0, 0.15, 0.35)):
        x, y = clusters(900, distance)
        assert least <= probe_hits(x[:600], y[:600], x[600:], y[600:]).mean() <= most
    assert probe_hits(0 * x, y, 0 * x, y).mean() <= 0.5, "all embedded alike"


def test_a_row_without_a_class_is_neither_trained_on_nor_counted():
    x, y = clusters(900, 0.7)
    unknown = np.where(np.arange(900) % 3, y, -1)
    found = probe_hits(x[:600], unknown[:600], x[600:], unknown[600:])
    of_known = probe_hits(x[:600][unknown[:600] >= 0], y[:600][unknown[:600] >= 0], x[600:], y[600:])
    np.testing.assert_array_equal(found, np.where(unknown[600:] >= 0, of_known, np.nan))
    for single in (0 * y, np.minimum(y, 0) - (y > 1)):  # one class; one class and unknown
        assert np.isnan(probe_hits(x, single, x[:9], y[:9])).all()


def embedded(data, rows):
    return embed_images(train.fresh(TINY, data).eval(), data.images, rows)[0]


def test_every_test_pair_is_searched_in_its_gallery(data, monkeypatch):
    model, test = train.fresh(TINY, data).eval(), data.subsets["test"]
    image, text = embedded(data, test), embed_texts(model, data.tokens[test, 0])
    for size, gallery, searched in ((1000, 40, 40), (15, 15, 30), (20, 20, 40)):  # 10 of 40 are in no whole gallery
        monkeypatch.setattr(utility, "GALLERY", size)
        found = utility.utilities(model, data, [])
        assert found["bits"].notna().sum() == found["r10"].notna().sum() == searched and len(found) == 40
        for i in range(searched):
            others, k = slice(i // gallery * gallery, (i // gallery + 1) * gallery), i % gallery
            similar = image[others] @ text[others].T
            nearer = [sum((s > one[k]) + (s == one[k]) / 2 for s in one) - 0.5 for one in (similar[k], similar[:, k])]
            assert found["bits"][i] == pytest.approx(np.mean([np.log2(gallery / (n + 1)) for n in nearer]), abs=1e-6)
            assert found["r10"][i] == np.mean([n < 10 for n in nearer])


def test_own_classes_and_labelled_images_are_probed_and_items_line_up(data):
    model, test = train.fresh(TINY, data).eval(), data.subsets["test"]
    y, unknown = data.shares.argmax(axis=1), data.shares.copy()
    unknown[test[::2]] = 0
    red, images = np.arange(120) % 2, np.random.default_rng(0).integers(0, 60, (120, 3, 32, 32), dtype=np.uint8)
    images[red == 1, 0] += 190
    labelled = Labelled("red", images[:50], red[:50], images[50:], red[50:], "")
    empty = replace(data, subsets={**data.subsets, "probe": test[:0]})  # then the shared pairs are probed
    for ready, subset in ((data, "probe"), (empty, "shared"), (replace(data, shares=unknown), "probe")):
        found = utility.utilities(model, ready, [labelled])
        assert found["item"].tolist() == list(range(70)) and set(found.dtypes[1:]) == {np.dtype("float32")}
        rows, image, known = data.subsets[subset], embedded(data, test), ready.shares[test].any(axis=1)
        hits = probe_hits(embedded(data, rows).numpy(), y[rows], image.numpy(), y[test])
        np.testing.assert_array_equal(found["probe_labels"], np.r_[np.where(known, hits, np.nan), [np.nan] * 30])
        assert (found["probe_red"] == 1).all()


def test_during_training_the_probe_is_accuracy_or_with_several_classes_average_precision(data):
    model, test, rows = train.fresh(TINY, data).eval(), data.subsets["test"], data.subsets["probe"]
    seen, new = embedded(data, rows).numpy(), embedded(data, test).numpy()
    y, several = data.shares.argmax(axis=1), data.shares + np.roll(data.shares, 1, axis=1)
    none, both = replace(data, class_names=(), shares=data.shares[:, :0]), replace(data, shares=several / 2)
    scores, classes = linear_probe(seen, both.shares[rows], new), np.flatnonzero(several[test].any(axis=0))
    precision = [average_precision_score(several[test, k] > 0, scores[:, k]) for k in classes]
    accuracy = probe_hits(seen, y[rows], new, y[test]).mean()
    for ready, expected in ((data, accuracy), (none, np.nan), (both, np.mean(precision))):
        found = utility.during_training(model, True, ready)["probe"]
        assert found == pytest.approx(expected, nan_ok=True) and utility.has_labels(ready) == (ready is data)


def write_labelled(folder, name, n, image="image", first=0):
    features = {image: datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {image: [{"bytes": picture(first + i), "path": None} for i in range(n)], "label": [i % 2 for i in range(n)]}
    for part in ("train", "test"):
        datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(folder / f"{name}_{part}.parquet")


def test_labelled_sets_are_known_by_content_a_missing_one_is_left_out_a_broken_one_named(tmp_path, monkeypatch):
    photos = write_parquet(tmp_path / "photos.parquet", columns(2))
    write_labelled(tmp_path, "imagenette", 6)
    write_labelled(tmp_path, "cifar10", 6, image="img")
    first, other = labelled_sets(photos, 8)
    assert [first.name, other.name] == ["imagenette", "cifar10"]
    assert first.train_images.shape == (6, 3, 8, 8) and other.test_classes.tolist() == [0, 1] * 3
    write_labelled(tmp_path, "imagenette", 6, first=1)  # other pictures, as many
    monkeypatch.setattr(utility, "MAX_TRAIN", 3)
    again, same = labelled_sets(photos, 8)
    assert first.fingerprint == other.fingerprint == same.fingerprint != again.fingerprint
    assert (len(same.train_images), len(same.test_images)) == (3, 6) and labelled_sets("scenes", 8) == []
    (tmp_path / "cifar10_test.parquet").unlink()
    with pytest.warns(UserWarning, match=r"'cifar10'.*: put cifar10_train\.parquet and cifar10_test\.parquet"):
        assert [one.name for one in labelled_sets(photos, 8)] == ["imagenette"]
    for labels in ({"class": [0, 1] * 3}, {"label": ["cat", "bird"] * 3}):
        write_parquet(tmp_path / "imagenette_train.parquet", columns(6, **labels))
        with pytest.raises(DataError, match=r"imagenette_train\.parquet and .* expected a column 'label'"):
            labelled_sets(photos, 8)
