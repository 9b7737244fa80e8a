"""What a frozen model is good for: retrieval on unseen pairs, linear probes, zero-shot classes.

Captioned photographs rarely have classes, so models are also asked about two labelled sets: Imagenette and CIFAR-10.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor

from lib import store
from lib.captions import DataError, encode
from lib.data import Prepared
from lib.model import embed_images, embed_texts, encode_text
from lib.sources import Columns, locate, open_rows, read_rows

SETS = {  # name -> where its parts lie among the parquet files that the Hub makes, training part first
    "imagenette": ("hf://datasets/frgfm/imagenette@refs/convert/parquet/160px/{}/*.parquet", ("train", "validation")),
    "cifar10": ("hf://datasets/uoft-cs/cifar10@refs/convert/parquet/plain_text/{}/*.parquet", ("train", "test")),
}
LIMITS = {"train": 5000, "test": 2000}  # images taken of a part, evenly spaced
STRENGTHS = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the logistic regression's L2 penalty, the simplest fit first
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, per image
LONGEST = 77  # tokens of a prompt before those that a model cannot read are left out
PHOTO, SCENE = "a photo of a {}", "a {}"


@dataclass(frozen=True)
class Labelled:
    """Images with one class each, to train a probe on and to test it."""

    name: str
    train_images: np.ndarray  # uint8 [N, 3, pixels, pixels]
    train_classes: np.ndarray  # int64 [N], index into class_names
    test_images: np.ndarray  # uint8 [M, 3, pixels, pixels]
    test_classes: np.ndarray  # int64 [M]
    class_names: tuple[str, ...]
    fingerprint: str  # of all of it, so that scores with other images have another name in the store


def labelled_sets(dataset: str, pixels: int) -> list[Labelled]:
    """Return the labelled sets for a data set of photographs; none for scenes, which have classes of their own.

    They are read from <name>_train.parquet and <name>_test.parquet (columns image, label) beside the data set, else
    from the Hub, and kept decoded in the store. A set that is in neither place is left out with a warning.

    Raises:
        DataError: the data set is nowhere, or a file beside it cannot be used.
    """
    kind, where = locate(dataset)
    found, folder = [], Path(where).parent if kind in ("parquet", "imagefolder") else Path("the folder of the data set")
    for name, (hub, parts) in SETS.items() if kind != "scenes" else ():
        sources = [str(folder / f"{name}_{part}.parquet") for part in LIMITS]
        if not all(Path(source).is_file() for source in sources):
            sources = [hub.format(part) for part in parts]
        try:
            found.append(_kept(name, sources, pixels))
        except DataError as error:
            if sources[0].startswith(str(folder)):
                raise
            warnings.warn(
                f"no labelled images '{name}', so nothing is probed on them: put {name}_train.parquet and "
                f"{name}_test.parquet (columns image, label) into {folder}, or go online. {error}",
                stacklevel=2,
            )
    return found


def _kept(name: str, sources: list[str], pixels: int) -> Labelled:
    """Return a labelled set from the store; what is in the store changes when a file does."""
    states = [Path(source).stat() if Path(source).is_file() else None for source in sources]
    state = [(one.st_size, one.st_mtime_ns) if one else None for one in states]
    key = hashlib.sha256(json.dumps([sources, state, pixels, LIMITS]).encode()).hexdigest()[:16]

    def build(to: Path) -> None:
        tensors, digest, names = {}, hashlib.sha256(), ()
        for (part, limit), source in zip(LIMITS.items(), sources, strict=True):
            images, classes, names = _decoded(source, limit, pixels)
            tensors |= {f"{part}_images": torch.from_numpy(images), f"{part}_classes": torch.from_numpy(classes)}
            digest.update(images.tobytes() + classes.tobytes())
        store.write_tensors(to / "tensors.safetensors", tensors)
        store.write_json(to / "content.json", {"class_names": names, "fingerprint": digest.hexdigest()})

    entry = store.get_or_build("labelled", key, build, {"name": name, "pixels": pixels})
    arrays = {part: tensor.numpy() for part, tensor in store.read_tensors(entry / "tensors.safetensors").items()}
    content = json.loads((entry / "content.json").read_text())
    names = tuple(content["class_names"])
    return Labelled(name=name, class_names=names, fingerprint=content["fingerprint"], **arrays)


def _decoded(source: str, limit: int, pixels: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images uint8 `[N, 3, pixels, pixels]`, classes int64 `[N]` and class names of a part."""
    opened = open_rows(source)
    columns = Columns("img" if "img" in opened.features else "image", [], "label")
    if columns.image not in opened.features or "int" not in str(getattr(opened.features.get("label"), "dtype", "")):
        raise DataError(f"{source}: expected columns 'image' and 'label' (an integer), found {[*opened.features]}.")
    rows = [row for row in read_rows(opened, source, columns, pixels) if row.labels]
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int))]
    classes = np.array([row.labels[0] for row in rows], np.int64)  # evenly spaced, as some sets lie by class
    return np.stack([row.image for row in rows]), classes, tuple(getattr(opened.features["label"], "names", None) or ())


# --- three measures ---


def retrieval(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 10)) -> dict[str, float]:
    """Return recall at k both ways, in [0, 1], for N matching pairs: `image_to_text_r1`, `text_to_image_r1`, ...

    A pair counts as found when fewer than k others are more similar; a tie counts as half a pair, so a model that gives
    all captions one embedding finds nothing by the order of the rows.

    Args:
        image: unit vectors `[N, D]`.
        text: unit vectors `[N, D]`, text i belongs to image i.
    """
    similarity = image @ text.T
    out = {}
    for way, s in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        own = s.diagonal()[:, None]
        rank = (s > own).sum(dim=1) + ((s == own).sum(dim=1) - 1) / 2
        out.update({f"{way}_r{k}": float((rank < k).double().mean()) for k in ks})
    return out


def linear_probe(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Return the accuracy in [0, 1] of a logistic regression on standardised features; NaN with fewer than two classes.

    Its L2 penalty is the one that does best on a held-out fifth of the training rows.

    Args:
        train: features `[N, D]` with classes int `[N]`.
        test: features `[M, D]` with classes int `[M]`.
    """
    train, test = _standardised(train, test)
    held = np.random.default_rng(0).permutation(len(train)) < len(train) // 5
    if len(np.unique(train_y[~held])) < 2 or not len(test):
        return float("nan")

    def fit(rows: np.ndarray, strength: float) -> LogisticRegression:
        # embeddings lie in a narrow cone, where Newton's method takes a tenth of the steps of L-BFGS
        return LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-6).fit(train[rows], train_y[rows])

    best = max(STRENGTHS, key=lambda strength: fit(~held, strength).score(train[held], train_y[held]))
    return float(fit(np.full(len(train), True), best).score(test, test_y))


def ridge_probe(train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Return what a ridge regression on class shares finds, in milliseconds: in [0, 1], NaN without classes to test.

    It is the accuracy over the rows with a class when no row has several, else the average precision, mean over the
    classes of the test rows. The shrinkage is the one with the smallest leave-one-out error.

    Args:
        train: features `[N, D]` with class shares `[N, K]`, as in `Prepared.targets`.
        test: features `[M, D]` with class shares `[M, K]`.
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
    classes = np.flatnonzero(test_targets.any(axis=0))
    return float(np.mean([average_precision_score(test_targets[:, k] > 0, scores[:, k]) for k in classes]))


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64, scaled by mean and deviation of `train`; what does not vary stays near 0."""
    centre, spread = train.mean(axis=0, dtype=float), np.maximum(train.std(axis=0, dtype=float), 1e-6)
    return (train - centre) / spread, (test - centre) / spread


def zero_shot(
    model: CLIP, images: Tensor, classes: np.ndarray, class_names: tuple[str, ...], token_ids: np.ndarray, prompt: str
) -> tuple[float, int]:
    """Return the accuracy in [0, 1] of the nearest prompt, and the number of classes it was among.

    Only classes count whose prompt the model can read (all its tokens in `token_ids`, within its context), and only
    their images. NaN with fewer than two of them, or without images.

    Args:
        images: unit vectors `[M, D]` on the CPU.
        classes: int `[M]`, indices into `class_names`.
        token_ids: int64 `[V]`, open_clip's id of each compact id.
        prompt: with {} for the name of a class.
    """
    ids = encode([[prompt.format(name)] for name in class_names], 1, LONGEST)[:, 0]
    context = len(model.positional_embedding)
    readable = np.flatnonzero(np.isin(ids, token_ids).all(axis=1) & ~ids[:, context:].any(axis=1))
    asked = np.isin(classes, readable)
    if len(readable) < 2 or not asked.any():
        return float("nan"), len(readable)
    tokens = torch.from_numpy(np.searchsorted(token_ids, ids[readable, :context]))
    with torch.no_grad():
        text = encode_text(model, tokens.to(next(model.parameters()).device)).cpu()
    nearest = (images[torch.from_numpy(asked)] @ text.T).argmax(dim=1).numpy()
    return float((readable[nearest] == classes[asked]).mean()), len(readable)


# --- all of them ---


def has_labels(prepared: Prepared) -> bool:
    """Return whether the data set itself has classes, at most one per image, so that they can be probed."""
    return len(prepared.class_names) > 1 and bool(((prepared.true_targets > 0).sum(axis=1) <= 1).all())


def main_measure(prepared: Prepared, labelled: list[Labelled]) -> str:
    """Return the column of `utilities` that stands for utility: the probe of the first labelled set, else of the labels
    of the data set itself, else retrieval of captions by images."""
    if labelled:
        return f"probe_{labelled[0].name}"
    return "probe_labels" if has_labels(prepared) else "image_to_text_r10"


def utilities(model: CLIP, prepared: Prepared, labelled: list[Labelled]) -> dict[str, float]:
    """Return what one model is good for, each in [0, 1].

    Retrieval on the test pairs; for each labelled set `probe_<name>`, `zero_shot_<name>` and `classes_<name>`, the
    number of classes that zero-shot was among; where the data set has classes of its own the same for `labels`, the
    probe trained on the shared and independent images, nothing corrupted in them, and all tested on the test images.
    """
    test = prepared.subsets["test"]
    image = embed_images(model, prepared.images, test)[0]
    found = retrieval(image, embed_texts(model, prepared.tokens[test, 0]))
    prompt = SCENE if prepared.data.dataset == "scenes" else PHOTO

    def ask(name: str, seen: Tensor, seen_y: np.ndarray, new: Tensor, new_y: np.ndarray, names: Any) -> None:
        accuracy, readable = zero_shot(model, new, new_y, names, prepared.token_ids, prompt)
        found[f"zero_shot_{name}"], found[f"classes_{name}"] = accuracy, readable
        found[f"probe_{name}"] = linear_probe(seen.numpy(), seen_y, new.numpy(), new_y)

    for one in labelled:
        seen, new = (embed_images(model, x, np.arange(len(x)))[0] for x in (one.train_images, one.test_images))
        ask(one.name, seen, one.train_classes, new, one.test_classes, one.class_names)
    if has_labels(prepared):
        known, classes = prepared.true_targets.any(axis=1), prepared.true_targets.argmax(axis=1)
        rows = np.concatenate([prepared.subsets["shared"], prepared.subsets["independent"]])
        rows, asked = rows[known[rows]], known[test]
        seen = embed_images(model, prepared.originals(rows), np.arange(len(rows)))[0]
        ask("labels", seen, classes[rows], image[torch.from_numpy(asked)], classes[test[asked]], prepared.class_names)
    return found


def during_training(model: CLIP, objective: str, prepared: Prepared) -> dict[str, float]:
    """Return utility on the test pairs, quick enough for every evaluation: `probe`, the ridge probe of the classes
    fitted on the shared pairs (NaN without classes), and retrieval where there are captions."""
    train, test = prepared.subsets["shared"], prepared.subsets["test"]
    image, found = embed_images(model, prepared.images, test)[0], {"probe": float("nan")}
    if prepared.class_names:
        seen, targets = embed_images(model, prepared.images, train)[0], prepared.targets
        found["probe"] = ridge_probe(seen.numpy(), targets[train], image.numpy(), targets[test])
    return found | (retrieval(image, embed_texts(model, prepared.tokens[test, 0])) if objective == "caption" else {})
