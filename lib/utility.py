"""What a frozen model is good for, item by item: retrieval on unseen pairs, linear probes, zero-shot classes.

Captioned photographs rarely have classes, so models are also asked about two labelled sets: Imagenette and CIFAR-10.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor

from lib.captions import encode
from lib.data import Dataset, load_labelled
from lib.model import embed_images, embed_texts
from lib.photos import DataError, locate

HUB = "hf://datasets/{}@refs/convert/parquet/{}/*.parquet"  # the files that the Hub makes of every data set
SETS = {  # name -> where its training and its test part lie
    "imagenette": [HUB.format("frgfm/imagenette", f"160px/{part}") for part in ("train", "validation")],
    "cifar10": [HUB.format("uoft-cs/cifar10", f"plain_text/{part}") for part in ("train", "test")],
}
MAX_TRAIN = 5000  # images that a probe is fitted on, evenly spaced as some sets lie by class
GALLERY = 1000  # test pairs that are searched at once; an evaluation during training is of the first ones
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, per image


@dataclass(frozen=True)
class Labelled:
    """Images with one class each, to fit a probe on and to test it."""

    name: str
    train_images: np.ndarray  # uint8 [N, 3, pixels, pixels]
    train_classes: np.ndarray  # int64 [N], index into class_names
    test_images: np.ndarray  # uint8 [M, 3, pixels, pixels]
    test_classes: np.ndarray  # int64 [M]
    class_names: tuple[str, ...]
    fingerprint: str  # of all of it, so that scores with other images have another name in the store


def labelled_sets(dataset: str, pixels: int) -> list[Labelled]:
    """Return the labelled sets for a data set of photographs; none for scenes, which have classes of their own.

    Beside the data set they are <name>_train.parquet and <name>_test.parquet (columns image, label), else on the Hub;
    one that is in neither is left out with a warning. Raise DataError for a file beside it that is no use.
    """
    if dataset == "scenes":
        return []
    kind, where = locate(dataset)
    found, folder = [], Path(where).parent if kind in ("parquet", "imagefolder") else Path("the folder of the data set")
    for name, on_hub in SETS.items():
        files = [folder / f"{name}_{part}.parquet" for part in ("train", "test")]
        beside = all(file.is_file() for file in files)
        try:
            train, test = (load_labelled(part, pixels) for part in (map(str, files) if beside else on_hub))
            if not len(train.class_names) == len(test.class_names) > 1:
                raise DataError(f"{files[0]} and {files[1].name}: expected a column 'label' with the same classes.")
        except DataError as error:
            if beside:
                raise
            advice = f"put {files[0].name} and {files[1].name} (columns image, label) into {folder}, or go online"
            why = repr(error.__cause__ or error)  # without what the error advises
            warnings.warn(f"no labelled images '{name}', so nothing is probed on them: {advice}. {why}", stacklevel=2)
            continue
        rows = np.linspace(0, len(train.images) - 1, min(MAX_TRAIN, len(train.images))).round().astype(int)
        classes = [one_class(part.shares) for part in (train, test)]
        prints = train.fingerprint[:8] + test.fingerprint[:8]
        images = train.images[rows], classes[0][rows], test.images, classes[1]
        found.append(Labelled(name, *images, train.class_names, prints))
    return found


def ranks(image: Tensor, text: Tensor) -> Tensor:
    """Return how many others are more similar than the own one, `[2, N]` from image to text and from text to image.

    Of N matching unit vectors `[N, D]`. A tie counts as half: a model with one embedding for all captions finds
    nothing by the order of the rows.
    """
    similarity = image @ text.T
    own = similarity.diagonal()[:, None]
    return torch.stack([(s > own).sum(dim=1) + ((s == own).sum(dim=1) - 1) / 2 for s in (similarity, similarity.T)])


def retrieval(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 10)) -> dict[str, float]:
    """Return recall at k both ways for N matching unit vectors `[N, D]`, in [0, 1]: `image_to_text_r1`, ...; and
    `bits`, the mean of log2(N / rank) over both ways: 1.4 for a random order, log2(N) where every pair is found."""
    both = dict(zip(("image_to_text", "text_to_image"), ranks(image, text), strict=True))
    found = {f"{way}_r{k}": float((rank < k).double().mean()) for way, rank in both.items() for k in ks}
    return found | {"bits": float(torch.cat([bits(rank, len(text)) for rank in both.values()]).mean())}


def bits(rank: Tensor, gallery: int) -> Tensor:
    """Return how much of the gallery each query rules out, log2(gallery / rank), with ranks counted from 0."""
    return (gallery / (rank.double() + 1)).log2()


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


def zero_shot(
    model: CLIP, images: Tensor, classes: np.ndarray, class_names: tuple[str, ...], token_ids: np.ndarray, prompt: str
) -> np.ndarray:
    """Return whether the nearest prompt is that of an image's class, 1 or 0 `[M]`.

    Only classes count that have a name, and whose prompt the model can read: all its tokens are in `token_ids` `[V]`,
    and within its context. Images of another class are NaN; with fewer than two such classes all are. `images`: unit
    vectors `[M, D]`; `classes`: int `[M]`, indices into `class_names`; `prompt`: with {} for the name of a class.
    """
    ids = encode([[prompt.format(name)] for name in class_names], 1, 77)[:, 0]  # 77: open_clip's context
    context = len(model.positional_embedding)
    named = np.array([not re.fullmatch(r"class \d+", name) for name in class_names], bool)  # as `class_shares` calls it
    readable = np.flatnonzero(named & np.isin(ids, token_ids).all(axis=1) & ~ids[:, context:].any(axis=1))
    if len(readable) < 2:
        return np.full(len(classes), np.nan)
    text = embed_texts(model, np.searchsorted(token_ids, ids[readable, :context]))
    nearest = readable[(images @ text.T).argmax(dim=1).numpy()]
    return np.where(np.isin(classes, readable), nearest == classes, np.nan)


def has_labels(data: Dataset) -> bool:
    """Return whether the data set itself has classes, at most one per image, so that they can be probed."""
    return len(data.class_names) > 1 and bool(((data.shares > 0).sum(axis=1) <= 1).all())


def main_measure(data: Dataset, labelled: list[Labelled]) -> str:
    """Return the column of `utilities` with the probe that counts, "" where nothing has classes to probe."""
    return f"probe_{labelled[0].name}" if labelled else "probe_labels" if has_labels(data) else ""


def in_galleries(image: Tensor, text: Tensor) -> dict[str, np.ndarray]:
    """Return `bits` and `r10` of each of N matching unit vectors `[N, D]`, the mean over both ways, in galleries of
    GALLERY consecutive pairs: `[M]`, as an incomplete last gallery is left out unless it is the only one."""
    size = min(GALLERY, len(image))
    parts = zip(image.split(size), text.split(size), strict=True)
    rank = torch.cat([ranks(*part) for part in parts if len(part[0]) == size], dim=1)
    return {"bits": bits(rank, size).mean(dim=0).numpy(), "r10": (rank < 10).double().mean(dim=0).numpy()}


def _probe_rows(data: Dataset) -> np.ndarray:
    """Return the rows that a probe of own classes is fitted on: the probe subset, or where that is empty the shared
    pairs. Neither is ever corrupted."""
    return data.subsets["probe" if len(data.subsets["probe"]) else "shared"]


def utilities(model: CLIP, data: Dataset, labelled: list[Labelled]) -> pd.DataFrame:
    """Return what one model is good for, one row per test item, NaN where a measure has no such item.

    Columns: item (0, 1, ...); of the test pairs `bits` and `r10`; of the test images of each labelled set, and of the
    test pairs for `labels`, the data set's own classes, probe_<name> and zero_shot_<name>.
    """
    rows, test = _probe_rows(data), data.subsets["test"]
    image = embed_images(model, data.images, test)[0]
    found = in_galleries(image, embed_texts(model, data.tokens[test, 0]))
    prompt = "a {}" if data.config.dataset == "scenes" else "a photo of a {}"

    def ask(name: str, seen: Tensor, seen_y: np.ndarray, new: Tensor, new_y: np.ndarray, names: Any) -> None:
        found[f"probe_{name}"] = probe_hits(seen.numpy(), seen_y, new.numpy(), new_y)
        found[f"zero_shot_{name}"] = zero_shot(model, new, new_y, names, data.token_ids, prompt)

    for one in labelled:
        seen, new = (embed_images(model, x, np.arange(len(x)))[0] for x in (one.train_images, one.test_images))
        ask(one.name, seen, one.train_classes, new, one.test_classes, one.class_names)
    if has_labels(data) and len(rows):
        classes, seen = one_class(data.shares), embed_images(model, data.images, rows)[0]
        ask("labels", seen, classes[rows], image, classes[test], data.class_names)
    columns = {name: pd.Series(column) for name, column in found.items()}
    return pd.DataFrame(columns, dtype="float32").rename_axis("item").reset_index()


def during_training(model: CLIP, captions: bool, data: Dataset) -> dict[str, float]:
    """Return utility on the first test pairs, quick enough for every evaluation: `probe`, and retrieval where there are
    captions.

    `probe` is the accuracy of the linear probe over the images with a class where none has several, else its average
    precision, the mean over classes; NaN without classes.
    """
    rows, test = _probe_rows(data)[: 2 * GALLERY], data.subsets["test"][:GALLERY]
    image, found = embed_images(model, data.images, test)[0], {"probe": float("nan")}
    shares, asked = data.shares[rows], data.shares[test]
    if has_labels(data):
        known = np.isin(np.arange(len(rows)), np.flatnonzero(shares.any(axis=1)))
        if known.any() and asked.any():
            seen = embed_images(model, data.images, rows[known])[0].numpy()
            hits = probe_hits(seen, one_class(shares[known]), image.numpy(), one_class(asked))
            found["probe"] = float(np.nanmean(hits))
    elif shares.any() and asked.any():
        scores = linear_probe(embed_images(model, data.images, rows)[0].numpy(), shares, image.numpy())
        classes = asked.any(axis=0)
        found["probe"] = float(average_precision_score(asked[:, classes] > 0, scores[:, classes]))
    return found | (retrieval(image, embed_texts(model, data.tokens[test, 0])) if captions else {})
