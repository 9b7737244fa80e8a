"""Probes against scikit-learn and naive references, at chance on noise, and the labelled sets they are trained on."""

from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fsspec.implementations.dirfs import DirFileSystem
from photo_sets import columns, picture, write_parquet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import lib.probe_sets
from lib import models
from lib.captions import encode
from lib.data import DataError, prepare
from lib.embeddings import of_images, of_texts
from lib.probe_sets import Labelled, find
from lib.probes import linear_probe, ridge_probe, utilities, zero_shot
from lib.recipes import Data
from lib.utility import retrieval

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def clusters(n: int, distance: float, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [n, 12] around one centre a class, in a narrow cone as embeddings are, and classes [n]."""
    rng = np.random.default_rng(0)
    centres, stretch = rng.normal(size=(classes, 12)) * distance, np.logspace(0, -3, 12)
    y = rng.integers(0, classes, n)
    x = (centres[y] + rng.normal(size=(n, 12))) * stretch @ rng.normal(size=(12, 12)) + 5
    return F.normalize(torch.from_numpy(x), dim=1).float().numpy(), y


# --- probes ---


def test_planted_classes_are_found_and_noise_is_at_chance():
    for distance, least, most in ((4.0, 0.98, 1), (0, 0.15, 0.35)):
        x, y = clusters(900, distance)
        one_hot = np.eye(4, dtype=np.float32)[y]
        assert least <= linear_probe(x[:600], y[:600], x[600:], y[600:]) <= most
        assert least <= ridge_probe(x[:600], one_hot[:600], x[600:], one_hot[600:]) <= most


def test_linear_probe_equals_scikit_learns_at_the_best_strength():
    x, y = clusters(1500, 0.7)
    ours = linear_probe(x[:1000], y[:1000] + 7, x[1000:], y[1000:] + 7)
    assert ours == linear_probe(x[:1000], y[:1000] + 7, x[1000:], y[1000:] + 7)
    standard = (x.astype(float) - x[:1000].mean(axis=0)) / x[:1000].std(axis=0)
    theirs = []
    for c in (1e-3, 1e-2, 1e-1, 1, 10, 100):
        model = LogisticRegression(C=c, max_iter=10_000, tol=1e-6).fit(standard[:1000], y[:1000])
        theirs.append(model.score(standard[1000:], y[1000:]))
    assert min(abs(ours - one) for one in theirs) < 0.003 and ours > max(theirs) - 0.03


def test_a_probe_of_one_class_or_of_nothing_is_unknown():
    x, y = clusters(50, 1.0)
    assert np.isnan(linear_probe(x, np.zeros(50, int), x, y)) and np.isnan(linear_probe(x, y, x[:0], y[:0]))
    nothing = np.zeros((50, 4), np.float32)
    assert np.isnan(ridge_probe(x, np.eye(4)[y], x, nothing)) and np.isnan(ridge_probe(x, nothing, x, np.eye(4)[y]))
    assert 0 <= linear_probe(np.ones((50, 3)), y, np.ones((50, 3)), y) <= 0.5  # a model that embeds all alike


def test_ridge_over_several_classes_an_image_is_mean_average_precision():
    x, y = clusters(900, 4.0, classes=6)
    several = np.stack([y % 2 == 0, y < 3, y == 5, y == 99], axis=1).astype(np.float32)  # class 3 has no image
    several /= np.maximum(1, several.sum(axis=1, keepdims=True))
    assert ridge_probe(x[:600], several[:600], x[600:], several[600:]) > 0.8
    noise = np.random.default_rng(1).permutation(x)
    chance = [average_precision_score(several[600:, k] > 0, noise[600:, 0]) for k in range(3)]
    assert abs(ridge_probe(noise[:600], several[:600], noise[600:], several[600:]) - np.mean(chance)) < 0.06


def test_images_without_a_class_change_no_accuracy():
    x, y = clusters(900, 1.0)
    one_hot = np.eye(4, dtype=np.float32)[y]
    unknown = np.arange(900) % 3 == 0
    whole = ridge_probe(x[:600][~unknown[:600]], one_hot[:600][~unknown[:600]], x[600:], one_hot[600:])
    one_hot[:600][unknown[:600]] = 0
    assert ridge_probe(x[:600], one_hot[:600], x[600:], one_hot[600:]) == whole


def test_zero_shot_counts_only_classes_whose_prompts_can_be_read():
    names = ("dog", "cat", "aardvark of the steppe", "horse")
    token_ids = np.unique(np.append(encode([["a photo of a dog cat horse aardvark"]], 1, 77), 0)).astype(np.int64)
    model = models.build("smoke", 32, len(token_ids), 24, seed=0)
    prompts = encode([[f"a photo of a {name}"] for name in names], 1, 24)[:, 0]
    text = models.encode_text(model, torch.from_numpy(np.searchsorted(token_ids, prompts[[0, 1, 3]]))).detach()
    targets = np.array([0, 1, 3, 2, 0])
    assert zero_shot(model, text[[0, 1, 2, 0, 1]], targets, names, token_ids) == (0.75, 3)  # the aardvark is left out
    accuracy, classes = zero_shot(model, text, targets[:3], names, token_ids[:-2], prompt="one {}")
    assert np.isnan(accuracy) and classes == 0
    short = models.build("smoke", 32, len(token_ids), 6, seed=0)  # too short for any of these prompts
    assert zero_shot(short, text, targets[:3], names, token_ids)[1] == 0


def test_utilities_of_scenes_find_what_a_model_sees(prepared):
    model = models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], seed=0)
    found = utilities(model, prepared, find("scenes", 32, Path("nowhere")))
    disjoint = prepared.subsets["disjoint"]
    image, text = of_images(model, prepared.pictures, disjoint), of_texts(model, prepared, disjoint)
    assert retrieval(image[0], text).items() <= found.items()
    assert set(found) - set(retrieval(image[0], text)) == {"probe_labels", "zero_shot_labels", "classes_labels"}
    assert found["classes_labels"] == len(prepared.pairs.label_names) and 0 <= found["probe_labels"] <= 1
    rows = np.concatenate([prepared.subsets["shared"], prepared.subsets["independent"]])
    assert prepared.odd[rows].any()  # negatives among them are no lesson in what the classes look like
    train, labels = of_images(model, prepared.pairs.images.__getitem__, rows)[0].numpy(), prepared.pairs.labels
    test = image[0].numpy(), labels[prepared.subsets["disjoint"]]
    assert found["probe_labels"] == linear_probe(train, labels[rows], *test)


def test_utilities_of_photographs_are_of_the_labelled_sets(tmp_path):
    path = write_parquet(tmp_path / "photos.parquet", columns(200))
    ready = prepare(Data(path, 16, 50, 60, 40, 30, 20, context=16), tmp_path)
    model = models.build("smoke", 16, len(ready.token_ids), ready.tokens.shape[2], seed=0)
    y = np.arange(80) % 2
    images = np.random.default_rng(0).integers(0, 60, (80, 3, 16, 16), dtype=np.uint8)
    images[y == 1, 0] += 190  # red
    bright = Labelled("bright", images[:50], y[:50], images[50:], y[50:], ("dog", "boat"))
    found = utilities(model, ready, [bright, replace(bright, name="nameless", class_names=())])
    assert found["probe_bright"] == found["probe_nameless"] == 1 and found["classes_bright"] == 2
    assert 0 <= found["zero_shot_bright"] <= 1 and np.isnan(found["zero_shot_nameless"])
    assert "probe_labels" not in found and "text_to_image_r10" in found


# --- the labelled sets ---


def write_labelled(folder: Path, name: str, n: int, image: str = "image") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = datasets.ClassLabel(names=["cat", "dog"])
    kinds = datasets.Features({image: datasets.Image(), "label": names})
    for part in ("train", "test"):
        rows = {image: columns(n)["image"], "label": [i % 2 for i in range(n)]}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(folder / f"{name}_{part}.parquet")


@pytest.fixture
def photos(tmp_path) -> str:
    return write_parquet(tmp_path / "photos.parquet", columns(2))


def test_sets_beside_the_data_are_decoded_once_until_a_file_changes(tmp_path, photos, monkeypatch):
    for name in ("imagenette", "cifar10"):
        write_labelled(tmp_path, name, 6)
    seen: list[int] = []
    original = lib.probe_sets.decode_image
    monkeypatch.setattr(lib.probe_sets, "decode_image", lambda cell, p: seen.append(p) or original(cell, p))
    first, again = find(photos, 8, tmp_path / "cache"), find(photos, 8, tmp_path / "cache")
    assert [one.name for one in first] == ["imagenette", "cifar10"] and len(seen) == 24
    assert first[0].train_images.shape == (6, 3, 8, 8) and np.array_equal(
        first[0].test_images[3], original(picture(3), 8)
    )
    assert first[1].train_targets.tolist() == [0, 1] * 3 and again[1].class_names == ("cat", "dog")
    assert np.array_equal(first[1].test_images, again[1].test_images)
    write_labelled(tmp_path, "cifar10", 7)
    assert len(find(photos, 8, tmp_path / "cache")[1].test_images) == 7 and len(seen) == 24 + 14
    kept = next((tmp_path / "cache").rglob("imagenette*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(find(photos, 8, tmp_path / "cache")[0].train_images, first[0].train_images)


def test_larger_sets_are_thinned_evenly(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(lib.probe_sets, "LIMITS", {"train": 3, "test": 2})
    write_labelled(tmp_path, "imagenette", 9)
    with pytest.warns(UserWarning, match="cifar10"):
        (found,) = find(photos, 8, tmp_path / "cache")
    assert found.train_targets.tolist() == [0, 0, 0] and len(found.test_images) == 2  # rows 0, 4 and 8


def test_without_files_or_hub_it_says_what_to_do(tmp_path, photos):
    with pytest.warns(UserWarning) as said:
        assert find(photos, 8, tmp_path / "cache") == []
    texts = [str(one.message) for one in said]
    assert len(texts) == 2 and "put imagenette_train.parquet and imagenette_test.parquet" in texts[0]
    assert str(tmp_path) in texts[1] and find("scenes", 8, tmp_path / "cache") == []


def test_the_hubs_parquet_files_serve_when_none_lie_beside_and_are_kept(tmp_path, photos, monkeypatch):
    write_labelled(tmp_path, "all", 5, "img")
    for hub, *parts in lib.probe_sets.SETS.values():
        for part, file in zip(parts, ("all_train.parquet", "all_test.parquet"), strict=True):
            there = tmp_path / "hub" / "datasets" / f"{hub}@refs" / "convert" / "parquet" / part
            there.mkdir(parents=True)
            (there / "0000.parquet").write_bytes((tmp_path / file).read_bytes())
    answer = huggingface_hub.DatasetInfo(id="x/y", sha="abc", tags=[])
    with monkeypatch.context() as online:
        online.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, **_: answer)
        online.setattr(huggingface_hub, "HfFileSystem", lambda: DirFileSystem(str(tmp_path / "hub")))
        found = find(photos, 8, tmp_path / "cache")
    assert [one.name for one in found] == ["imagenette", "cifar10"] and found[0].class_names == ("cat", "dog")
    offline = find(photos, 8, tmp_path / "cache")
    assert len(offline) == 2 and np.array_equal(offline[1].train_images, found[1].train_images)


def test_files_that_cannot_be_used_are_named(tmp_path, photos):
    for name in ("imagenette", "cifar10"):
        write_labelled(tmp_path, name, 3)
    write_parquet(tmp_path / "cifar10_train.parquet", {"image": columns(2)["image"], "class": [0, 1]})
    with pytest.raises(DataError, match=r"cifar10_train\.parquet: expected columns 'image' and 'label'"):
        find(photos, 8, tmp_path / "cache")
    write_parquet(tmp_path / "cifar10_train.parquet", {"image": [{"bytes": b"no", "path": None}], "label": [0]})
    with pytest.raises(DataError, match=r"cifar10_train\.parquet: row 0 holds no readable image"):
        find(photos, 8, tmp_path / "cache")
    (tmp_path / "imagenette_test.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"imagenette_test\.parquet: no readable parquet"):
        find(photos, 8, tmp_path / "cache")


def test_real_labelled_sets_have_ten_classes_and_are_above_chance(tmp_path):
    path = REAL / "cifar10_train.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent: real photographs are not part of the project")
    cifar = next(one for one in find(str(REAL / "flickr8k.parquet"), 16, tmp_path) if one.name == "cifar10")
    assert len(cifar.class_names) == len(set(cifar.train_targets)) == 10
    assert len(cifar.train_images) == 5000 and len(cifar.test_images) == 2000
    coarse = [x[:, :, ::4, ::4].reshape(len(x), -1) for x in (cifar.train_images, cifar.test_images)]
    assert linear_probe(coarse[0], cifar.train_targets, coarse[1], cifar.test_targets) > 0.2
