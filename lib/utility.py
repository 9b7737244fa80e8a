"""What a frozen model is good for, item by item: retrieval on unseen pairs, and linear probes.

Captioned photographs rarely have classes, so models are also asked about two labelled sets: Imagenette and CIFAR-10."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor

from lib.data import Dataset, load_labelled
from lib.model import embed_images, embed_texts
from lib.photos import DataError, locate

HUB = "hf://datasets/{}@refs/convert/parquet/{}/*.parquet"  # the files that the Hub makes of every data set
SETS = {  # name -> where its training and its test part lie
    "imagenette": [HUB.format("frgfm/imagenette", f"160px/{part}") for part in ("train", "validation")],
    "cifar10": [HUB.format("uoft-cs/cifar10", f"plain_text/{part}") for part in ("train", "test")],
}
MAX_TRAIN = 5000  # images that a probe is fitted on, evenly spaced as some sets lie by class
GALLERY = 1000  # test pairs that are searched at once; an evaluation during training is of the first gallery
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, per image


class Labelled(NamedTuple):
    """Images with one class each: uint8 `[N, 3, pixels, pixels]`, and class indices int64 `[N]`."""

    name: str
    train_images: np.ndarray
    train_classes: np.ndarray
    test_images: np.ndarray
    test_classes: np.ndarray
    fingerprint: str


def labelled_sets(dataset: str, pixels: int) -> list[Labelled]:
    """Return the labelled sets for a data set of photographs; none for scenes, which have classes of their own. Beside
    the data set they are <name>_train.parquet and <name>_test.parquet (columns image, label), else on the Hub; one that
    is in neither is left out with a warning. Raise DataError for a file beside it that is no use."""
    found, folder = [], Path(locate(dataset)[0]).parent if dataset != "scenes" else Path()
    for name, on_hub in SETS.items() if dataset != "scenes" else ():
        files = [folder / f"{name}_{part}.parquet" for part in ("train", "test")]
        beside = all(file.is_file() for file in files)
        try:
            train, test = (load_labelled(part, pixels) for part in (map(str, files) if beside else on_hub))
            if train.class_names != test.class_names or len(train.class_names) < 2:
                raise DataError(f"{files[0]} and {files[1].name}: expected a column 'label' with the same classes.")
        except DataError:
            if beside:
                raise
            advice = f"put {files[0].name} and {files[1].name} (columns image, label) beside the data set, or go online"
            warnings.warn(f"no labelled images '{name}', so nothing is probed on them: {advice}", stacklevel=2)
            continue
        rows = np.linspace(0, len(train.images) - 1, min(MAX_TRAIN, len(train.images))).round().astype(int)
        images, classes = (train.images[rows], test.images), (one_class(train.shares)[rows], one_class(test.shares))
        of_train, of_test = zip(images, classes, strict=True)
        found.append(Labelled(name, *of_train, *of_test, train.fingerprint[:8] + test.fingerprint[:8]))
    return found


def ranks(image: Tensor, text: Tensor) -> Tensor:
    """Return how many others are more similar than the own one, `[2, N]` from image to text and back, of N matching
    unit vectors `[N, D]`. A tie counts as half: one embedding for all finds nothing by the order of the rows."""
    similarity = image @ text.T
    own = similarity.diagonal()[:, None]
    return torch.stack([(s > own).sum(dim=1) + ((s == own).sum(dim=1) - 1) / 2 for s in (similarity, similarity.T)])


def retrieval(image: Tensor, text: Tensor) -> dict[str, np.ndarray]:
    """Return `bits` and `r10` of each of N matching unit vectors `[N, D]`, the mean over both ways, in galleries of
    GALLERY consecutive pairs: `[M]`, as an incomplete last gallery is left out unless it is the only one. Bits say how
    much of the gallery a query rules out, log2(gallery / rank): 1.4 on average for a random order."""
    size = min(GALLERY, len(image))
    parts = zip(image.split(size), text.split(size), strict=True)
    rank = torch.cat([ranks(*part) for part in parts if len(part[0]) == size], dim=1)
    bits = (size / (rank.double() + 1)).log2()  # ranks are counted from 0
    return {"bits": bits.mean(dim=0).numpy(), "r10": (rank < 10).double().mean(dim=0).numpy()}


def linear_probe(train: np.ndarray, train_shares: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the scores `[M, K]` of test features `[M, D]` by a ridge regression of class shares `[N, K]` on features
    `[N, D]`, standardised. Its shrinkage has the smallest leave-one-out error. It takes milliseconds."""
    centre, spread = train.mean(axis=0, dtype=float), np.maximum(train.std(axis=0, dtype=float), 1e-6)
    train, test = (train - centre) / spread, (test - centre) / spread  # what does not vary stays near 0
    fitted = RidgeCV(alphas=len(train) * np.array(SHRINKAGES)).fit(train, train_shares.astype(float))
    return fitted.predict(test).reshape(len(test), -1)


def probe_hits(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Return whether the linear probe finds the class of each test row, 1 or 0 `[M]`. A row of class -1 (not known) is
    not trained on, and NaN in the test; with fewer than two classes to train on all are."""
    known = train_y >= 0
    if len(np.unique(train_y[known])) < 2:
        return np.full(len(test), np.nan)
    scores = linear_probe(train[known], np.eye(train_y.max() + 1)[train_y[known]], test)
    return np.where(test_y >= 0, scores.argmax(axis=1) == test_y, np.nan)


def one_class(shares: np.ndarray) -> np.ndarray:
    """Return the class of each row of class shares `[N, K]`, -1 where none is known."""
    return np.where(shares.any(axis=1), shares.argmax(axis=1), -1) if shares.shape[1] else np.full(len(shares), -1)


def has_labels(data: Dataset) -> bool:
    """Return whether the data set itself has classes, at most one per image, so that they can be probed."""
    return len(data.class_names) > 1 and bool(((data.shares > 0).sum(axis=1) <= 1).all())


def _probe_rows(data: Dataset) -> np.ndarray:
    """Return the rows that a probe of own classes is fitted on, which are never corrupted."""
    return data.subsets["probe" if len(data.subsets["probe"]) else "shared"]


def utilities(model: CLIP, data: Dataset, labelled: list[Labelled]) -> pd.DataFrame:
    """Return what one model is good for, one row per test item, NaN where a measure has no such item. Columns: item (0,
    1, ...); of the test pairs `bits` and `r10`; probe_<name> of the test images of each labelled set, and of the test
    pairs for `labels`, the data set's own classes."""
    rows, test = _probe_rows(data), data.subsets["test"]
    image = embed_images(model, data.images, test)[0]
    found = retrieval(image, embed_texts(model, data.tokens[test, 0]))
    for name, train_images, train_y, test_images, test_y, _ in labelled:
        seen, new = (embed_images(model, x, np.arange(len(x)))[0].numpy() for x in (train_images, test_images))
        found[f"probe_{name}"] = probe_hits(seen, train_y, new, test_y)
    if has_labels(data) and len(rows):
        classes, seen = one_class(data.shares), embed_images(model, data.images, rows)[0].numpy()
        found["probe_labels"] = probe_hits(seen, classes[rows], image.numpy(), classes[test])
    columns = {name: pd.Series(column) for name, column in found.items()}
    return pd.DataFrame(columns, dtype="float32").rename_axis("item").reset_index()


def during_training(model: CLIP, captions: bool, data: Dataset) -> dict[str, float]:
    """Return utility on the first test pairs, quick enough for every evaluation: `probe`, and `bits` and `r10` where
    there are captions. `probe` is the accuracy of the linear probe over the images with a class where none has several,
    else its average precision, the mean over classes; NaN without classes."""
    rows, test = _probe_rows(data)[: 2 * GALLERY], data.subsets["test"][:GALLERY]
    image, found = embed_images(model, data.images, test)[0], {"probe": float("nan")}
    shares, asked = data.shares[rows], data.shares[test]
    if shares.any() and asked.any():
        seen = embed_images(model, data.images, rows)[0].numpy()
        if has_labels(data):
            found["probe"] = float(np.nanmean(probe_hits(seen, one_class(shares), image.numpy(), one_class(asked))))
        else:
            scores, classes = linear_probe(seen, shares, image.numpy()), asked.any(axis=0)
            found["probe"] = float(average_precision_score(asked[:, classes] > 0, scores[:, classes]))
    if captions:
        found |= {k: float(v.mean()) for k, v in retrieval(image, embed_texts(model, data.tokens[test, 0])).items()}
    return found
