"""What a frozen model is good for, item by item: retrieval on unseen pairs, linear probes, zero-shot classes.

Captioned photographs rarely have classes, so models are also asked about two labelled sets: Imagenette and CIFAR-10.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor

from lib import store
from lib.captions import DataError, encode
from lib.decode import read_rows, square
from lib.model import embed_images, embed_texts
from lib.sources import Columns, locate, open_rows

if TYPE_CHECKING:
    from lib.data import Prepared

HUB = "hf://datasets/{}@refs/convert/parquet/{}/*.parquet"  # the files that the Hub makes of every data set
SETS = {  # name -> where its training and its test part lie
    "imagenette": [HUB.format("frgfm/imagenette", f"160px/{part}") for part in ("train", "validation")],
    "cifar10": [HUB.format("uoft-cs/cifar10", f"plain_text/{part}") for part in ("train", "test")],
}
LIMITS = {"train": 5000, "test": None}  # images taken of a part, evenly spaced as some lie by class; None: all
GALLERY = 1000  # test pairs that are searched at once; an evaluation during training is of the first ones
PENALTY = 10.0  # L2 of the probe: the middle of what held-out rows chose (1 to 100), which moved a probe by two points
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, per image


@dataclass(frozen=True)
class Labelled:
    """Images with one class each, to train a probe on and to test it."""

    name: str
    train_images: np.ndarray  # uint8 [N, 3, pixels, pixels]
    train_classes: np.ndarray  # int64 [N], index into class_names
    test_images: np.ndarray  # uint8 [M, 3, pixels, pixels]
    test_classes: np.ndarray  # int64 [M]
    class_names: tuple[str, ...]  # () where the file tells none
    fingerprint: str  # of all of it, so that scores with other images have another name in the store


def labelled_sets(dataset: str, pixels: int) -> list[Labelled]:
    """Return the labelled sets for a data set of photographs; none for scenes, which have classes of their own.

    Beside the data set they are <name>_train.parquet and <name>_test.parquet (columns image, label), else from the
    Hub; one that is in neither is left out with a warning. Raise DataError for a file beside it that is no use.
    """
    kind, where = locate(dataset)
    found, folder = [], Path(where).parent if kind in ("parquet", "imagefolder") else Path("the folder of the data set")
    for name, on_hub in SETS.items() if kind != "scenes" else ():
        files = [folder / f"{name}_{part}.parquet" for part in LIMITS]
        beside = all(file.is_file() for file in files)
        try:
            found.append(_kept(name, [str(file) for file in files] if beside else on_hub, pixels))
        except DataError as error:
            if beside:
                raise
            advice = f"put {files[0].name} and {files[1].name} (columns image, label) into {folder}, or go online"
            why = repr(error.__cause__ or error)  # without what the error advises
            warnings.warn(f"no labelled images '{name}', so nothing is probed on them: {advice}. {why}", stacklevel=2)
    return found


def _kept(name: str, sources: list[str], pixels: int) -> Labelled:
    """Return a labelled set from the store; what is in the store changes when a file does."""
    files = [Path(source).stat() for source in sources if Path(source).is_file()]
    state = [sources, [(file.st_size, file.st_mtime_ns) for file in files], pixels, LIMITS]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    def build(to: Path) -> None:
        train, test = (_decoded(source, part, pixels) for part, source in zip(LIMITS, sources, strict=True))
        with store.atomic(to / "set.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **train | test)

    entry = store.get_or_build("labelled", key, build, {"name": name, "pixels": pixels})
    with np.load(entry / "set.npz") as file:
        found: dict[str, Any] = dict(file)
    fingerprint = hashlib.sha256(b"".join(array.tobytes() for array in found.values())).hexdigest()
    found["class_names"] = tuple(found["class_names"].tolist())
    return Labelled(name=name, fingerprint=fingerprint, **found)


def _decoded(source: str, part: str, pixels: int) -> dict[str, Any]:
    """Return the arrays of `Labelled` that are of one part, and class_names."""
    opened = open_rows(source)
    columns, label = Columns("img" if "img" in opened.features else "image", [], "label"), opened.features.get("label")
    usable = columns.image in opened.features and "int" in str(getattr(label, "dtype", ""))
    found = read_rows(opened, source, columns, lambda image: square(image, pixels)) if usable else ()
    if not (rows := [row for row in found if row.labels]):
        raise DataError(f"{source}: expected columns 'image' and 'label' (an integer), found {[*opened.features]}.")
    places = np.linspace(0, len(rows) - 1, min(LIMITS[part] or len(rows), len(rows))).round().astype(int)
    images, classes = zip(*((rows[place].image, rows[place].labels[0]) for place in places), strict=True)
    names = np.array(getattr(label, "names", None) or (), str)
    return {f"{part}_images": np.stack(images), f"{part}_classes": np.array(classes), "class_names": names}


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


def linear_probe(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Return whether a logistic regression on standardised features finds the class of each test row, 1 or 0 `[M]`.

    Features are `[N, D]` and `[M, D]`, classes int. A row of class -1 (not known) is not trained on, and NaN in the
    test; with fewer than two classes to train on all are.
    """
    train, train_y = train[train_y >= 0], train_y[train_y >= 0]
    if len(np.unique(train_y)) < 2:
        return np.full(len(test), np.nan)
    train, test = _standardised(train, test)
    fitted = LogisticRegression(C=1 / PENALTY, tol=1e-6, max_iter=10_000).fit(train, train_y)
    return np.where(test_y >= 0, fitted.predict(test) == test_y, np.nan)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64, scaled by mean and deviation of `train`; what does not vary stays near 0."""
    centre, spread = train.mean(axis=0, dtype=float), np.maximum(train.std(axis=0, dtype=float), 1e-6)
    return (train - centre) / spread, (test - centre) / spread


def ridge_probe(train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Return what a ridge regression on class shares finds, in milliseconds: in [0, 1], NaN without classes to test.

    Features are `[N, D]`, class shares `[N, K]`. It is the accuracy over the rows with a class when no row has several,
    else the average precision, mean over the test rows' classes; the shrinkage has the smallest leave-one-out error.
    """
    single = all(((t > 0).sum(axis=1) <= 1).all() for t in (train_targets, test_targets))
    if single:
        known, asked = train_targets.any(axis=1), test_targets.any(axis=1)
        train, train_targets, test, test_targets = train[known], train_targets[known], test[asked], test_targets[asked]
    if not len(train) or not test_targets.any():
        return float("nan")
    train, test = _standardised(train, test)
    scores = RidgeCV(alphas=len(train) * np.array(SHRINKAGES)).fit(train, train_targets.astype(float)).predict(test)
    if single:
        return float((scores.argmax(axis=1) == test_targets.argmax(axis=1)).mean())
    classes = test_targets.any(axis=0)
    return float(average_precision_score(test_targets[:, classes] > 0, scores[:, classes]))


def zero_shot(
    model: CLIP, images: Tensor, classes: np.ndarray, class_names: tuple[str, ...], token_ids: np.ndarray, prompt: str
) -> np.ndarray:
    """Return whether the nearest prompt is that of an image's class, 1 or 0 `[M]`.

    Only classes count whose prompt the model can read: all its tokens are in `token_ids` `[V]`, and within its context.
    Images of another class are NaN; with fewer than two such classes all are. `images`: unit vectors `[M, D]`;
    `classes`: int `[M]`, indices into `class_names`; `prompt`: with {} for the name of a class.
    """
    ids = encode([[prompt.format(name)] for name in class_names], 1, 77)[:, 0]  # 77: open_clip's context
    context = len(model.positional_embedding)
    readable = np.flatnonzero(np.isin(ids, token_ids).all(axis=1) & ~ids[:, context:].any(axis=1))
    if len(readable) < 2:
        return np.full(len(classes), np.nan)
    text = embed_texts(model, np.searchsorted(token_ids, ids[readable, :context]))
    nearest = readable[(images @ text.T).argmax(dim=1).numpy()]
    return np.where(np.isin(classes, readable), nearest == classes, np.nan)


def has_labels(prepared: Prepared) -> bool:
    """Return whether the data set itself has classes, at most one per image, so that they can be probed."""
    return len(prepared.class_names) > 1 and bool(((prepared.true_targets > 0).sum(axis=1) <= 1).all())


def main_measure(prepared: Prepared, labelled: list[Labelled]) -> str:
    """Return the column of `utilities` with the probe that counts, "" where nothing has classes to probe."""
    return f"probe_{labelled[0].name}" if labelled else "probe_labels" if has_labels(prepared) else ""


def in_galleries(image: Tensor, text: Tensor) -> dict[str, np.ndarray]:
    """Return `bits` and `r10` of each of N matching unit vectors `[N, D]`, the mean over both ways, in galleries of
    GALLERY consecutive pairs: `[M]`, as an incomplete last gallery is left out unless it is the only one."""
    size = min(GALLERY, len(image))
    parts = zip(image.split(size), text.split(size), strict=True)
    rank = torch.cat([ranks(*part) for part in parts if len(part[0]) == size], dim=1)
    return {"bits": bits(rank, size).mean(dim=0).numpy(), "r10": (rank < 10).double().mean(dim=0).numpy()}


def utilities(model: CLIP, prepared: Prepared, labelled: list[Labelled]) -> pd.DataFrame:
    """Return what one model is good for, one row per test item, NaN where a measure has no such item.

    Columns: item (0, 1, ...); of the test pairs `bits` and `r10`; of the test images of each labelled set, and of the
    test pairs for `labels`, the data set's own classes, probe_<name> and zero_shot_<name>. A probe of own classes is
    fitted on the probe subset, or where that is empty on the shared pairs: neither is ever corrupted.
    """
    test = prepared.subsets["test"]
    image = embed_images(model, prepared.images, test)[0]
    found = in_galleries(image, embed_texts(model, prepared.tokens[test, 0]))
    prompt = "a {}" if prepared.data.dataset == "scenes" else "a photo of a {}"

    def ask(name: str, seen: Tensor, seen_y: np.ndarray, new: Tensor, new_y: np.ndarray, names: Any) -> None:
        found[f"probe_{name}"] = linear_probe(seen.numpy(), seen_y, new.numpy(), new_y)
        found[f"zero_shot_{name}"] = zero_shot(model, new, new_y, names, prepared.token_ids, prompt)

    for one in labelled:
        seen, new = (embed_images(model, x, np.arange(len(x)))[0] for x in (one.train_images, one.test_images))
        ask(one.name, seen, one.train_classes, new, one.test_classes, one.class_names)
    rows = prepared.subsets["probe" if len(prepared.subsets["probe"]) else "shared"]
    if has_labels(prepared) and len(rows):
        classes = np.where(prepared.true_targets.any(axis=1), prepared.true_targets.argmax(axis=1), -1)
        seen = embed_images(model, prepared.images, rows)[0]
        ask("labels", seen, classes[rows], image, classes[test], prepared.class_names)
    columns = {name: pd.Series(column) for name, column in found.items()}
    return pd.DataFrame(columns, dtype="float32").rename_axis("item").reset_index()


def during_training(model: CLIP, captions: bool, prepared: Prepared) -> dict[str, float]:
    """Return utility on the test pairs, quick enough for every evaluation: `probe`, the ridge probe of the classes
    (NaN without classes), and retrieval where there are captions; on at most GALLERY pairs."""
    train = prepared.subsets["probe" if len(prepared.subsets["probe"]) else "shared"][: 2 * GALLERY]
    test = prepared.subsets["test"][:GALLERY]
    image, found = embed_images(model, prepared.images, test)[0], {"probe": float("nan")}
    if prepared.class_names and len(train):
        seen, targets = embed_images(model, prepared.images, train)[0], prepared.targets
        found["probe"] = ridge_probe(seen.numpy(), targets[train], image.numpy(), targets[test])
    return found | (retrieval(image, embed_texts(model, prepared.tokens[test, 0])) if captions else {})
