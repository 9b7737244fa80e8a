"""What a frozen model is good for: retrieval on unseen pairs, linear probes, zero-shot classes.

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
import torch
from open_clip.model import CLIP
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor

from lib import stats, store
from lib.captions import DataError, encode
from lib.model import BLOCK, embed_images, embed_texts
from lib.sources import Columns, locate, open_rows, read_rows

if TYPE_CHECKING:
    from lib.data import Prepared

HUB = "hf://datasets/{}@refs/convert/parquet/{}/*.parquet"  # the parquet files that the Hub makes of every data set
SETS = {  # name -> where its training and its test part lie
    "imagenette": [HUB.format("frgfm/imagenette", f"160px/{part}") for part in ("train", "validation")],
    "cifar10": [HUB.format("uoft-cs/cifar10", f"plain_text/{part}") for part in ("train", "test")],
}
LIMITS = {"train": 5000, "test": 2000}  # images taken of a part, evenly spaced
STRENGTHS = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the logistic regression's L2 penalty, the simplest fit first
QUICK = 1000  # test pairs of an evaluation during training
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

    They are read from <name>_train.parquet and <name>_test.parquet (columns image, label) beside the data set, else
    from the Hub; one that is in neither place is left out with a warning. Raise DataError for a file beside it that
    cannot be used.
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
    rows = [row for row in read_rows(opened, source, columns, pixels) if row.labels] if usable else []
    if not rows:
        raise DataError(f"{source}: expected columns 'image' and 'label' (an integer), found {[*opened.features]}.")
    places = np.linspace(0, len(rows) - 1, min(LIMITS[part], len(rows))).round().astype(int)  # some sets lie by class
    images, classes = zip(*((rows[place].image, rows[place].labels[0]) for place in places), strict=True)
    found = {f"{part}_images": np.stack(images), f"{part}_classes": np.array(classes, np.int64)}
    return found | {"class_names": np.array(getattr(label, "names", None) or (), str)}


def ranks(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many others are more similar than the own one, `[N]` from image to text and from text to image.

    Of N matching unit vectors `[N, D]`. A tie counts as half: a model with one embedding for all captions finds
    nothing by the order of the rows.
    """
    similarity = image @ text.T
    own = similarity.diagonal()
    first, second = (
        (s > own[:, None]).sum(dim=1) + ((s == own[:, None]).sum(dim=1) - 1) / 2 for s in (similarity, similarity.T)
    )
    return first, second


def retrieval(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 10)) -> dict[str, float]:
    """Return recall at k both ways for N matching unit vectors `[N, D]`, in [0, 1]: `image_to_text_r1`, ...; and
    `bits`, the mean of log2(N / rank) over both ways: 1.4 for a random order, log2(N) where every pair is found."""
    both = dict(zip(("image_to_text", "text_to_image"), ranks(image, text), strict=True))
    found = {f"{way}_r{k}": float((rank < k).double().mean()) for way, rank in both.items() for k in ks}
    return found | {"bits": float(torch.cat([bits(rank, len(text)) for rank in both.values()]).mean())}


def bits(rank: Tensor, gallery: int) -> Tensor:
    """Return how much of the gallery each query rules out, log2(gallery / rank) `[N]`, with ranks counted from 0."""
    return (gallery / (rank.double() + 1)).log2()


def linear_probe(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Return the accuracy in [0, 1] of a logistic regression on standardised features; NaN with fewer than two classes.

    Features are `[N, D]`, classes int `[N]`. The L2 penalty is the one that does best on a held-out fifth of the
    training rows; among equally good ones it is the largest.
    """
    train, test = _standardised(train, test)
    held = np.random.default_rng(0).permutation(len(train)) < len(train) // 5
    if len(np.unique(train_y[~held])) < 2 or not len(test):
        return float("nan")

    def accuracy(rows: np.ndarray, strength: float, x: np.ndarray, y: np.ndarray) -> float:
        return float((stats.logistic(train[rows], train_y[rows], strength, x) == y).mean())

    best = max(STRENGTHS, key=lambda strength: accuracy(~held, strength, train[held], train_y[held]))
    return accuracy(np.full(len(train), True), best, test, test_y)


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
) -> tuple[float, int]:
    """Return the accuracy in [0, 1] of the nearest prompt, and the number of classes it was among.

    Only classes count whose prompt the model can read (all its tokens in `token_ids` `[V]`, within its context), and
    only their images; NaN with fewer than two. `images`: unit vectors `[M, D]`; `classes`: int `[M]`, indices into
    `class_names`; `prompt`: with {} for the name of a class.
    """
    ids = encode([[prompt.format(name)] for name in class_names], 1, 77)[:, 0]  # 77: open_clip's context
    context = len(model.positional_embedding)
    readable = np.flatnonzero(np.isin(ids, token_ids).all(axis=1) & ~ids[:, context:].any(axis=1))
    asked = np.isin(classes, readable)
    if len(readable) < 2 or not asked.any():
        return float("nan"), len(readable)
    text = embed_texts(model, np.searchsorted(token_ids, ids[readable, :context]))
    nearest = (images[torch.from_numpy(asked)] @ text.T).argmax(dim=1).numpy()
    return float((readable[nearest] == classes[asked]).mean()), len(readable)


def has_labels(prepared: Prepared) -> bool:
    """Return whether the data set itself has classes, at most one per image, so that they can be probed."""
    return len(prepared.class_names) > 1 and bool(((prepared.true_targets > 0).sum(axis=1) <= 1).all())


def main_measure(prepared: Prepared, labelled: list[Labelled]) -> str:
    """Return the column of `utilities` that stands for utility: a probe where there are classes, else retrieval."""
    own = "probe_labels" if has_labels(prepared) else "image_to_text_r10"
    return f"probe_{labelled[0].name}" if labelled else own


def utilities(model: CLIP, prepared: Prepared, labelled: list[Labelled]) -> dict[str, float]:
    """Return what one model is good for, each in [0, 1]: retrieval on the test pairs and, for each labelled set,
    `probe_<name>`, `zero_shot_<name>` and `classes_<name>`, the number of classes that zero-shot was among; so for
    `labels` of the data set itself, probed on its shared and independent images as they were before corruption."""
    test = prepared.subsets["test"]
    image = embed_images(model, prepared.images, test)[0]
    found = retrieval(image, embed_texts(model, prepared.tokens[test, 0]))
    prompt = "a {}" if prepared.data.dataset == "scenes" else "a photo of a {}"

    def ask(name: str, seen: Tensor, seen_y: np.ndarray, new: Tensor, new_y: np.ndarray, names: Any) -> None:
        accuracy, readable = zero_shot(model, new, new_y, names, prepared.token_ids, prompt)
        found[f"zero_shot_{name}"], found[f"classes_{name}"] = accuracy, readable
        found[f"probe_{name}"] = linear_probe(seen.numpy(), seen_y, new.numpy(), new_y)

    for one in labelled:
        seen, new = (embed_images(model, x, np.arange(len(x)))[0] for x in (one.train_images, one.test_images))
        ask(one.name, seen, one.train_classes, new, one.test_classes, one.class_names)
    if has_labels(prepared):
        known, classes = prepared.true_targets.sum(axis=1) > 0, prepared.true_targets.argmax(axis=1)
        rows = np.concatenate([prepared.subsets["shared"], prepared.subsets["independent"]])
        rows, asked = rows[known[rows]], known[test]
        blocks = (prepared.originals(part) for part in np.split(rows, range(BLOCK, len(rows), BLOCK)))
        seen = torch.cat([embed_images(model, block, np.arange(len(block)))[0] for block in blocks])
        ask("labels", seen, classes[rows], image[torch.from_numpy(asked)], classes[test[asked]], prepared.class_names)
    return found


def during_training(model: CLIP, objective: str, prepared: Prepared) -> dict[str, float]:
    """Return utility on the test pairs, quick enough for every evaluation: `probe`, the ridge probe of the classes
    (NaN without classes), and retrieval where there are captions; on at most QUICK pairs."""
    train = prepared.subsets["probe" if len(prepared.subsets["probe"]) else "shared"][: 2 * QUICK]
    test = prepared.subsets["test"][:QUICK]
    image, found = embed_images(model, prepared.images, test)[0], {"probe": float("nan")}
    if prepared.class_names:
        seen, targets = embed_images(model, prepared.images, train)[0], prepared.targets
        found["probe"] = ridge_probe(seen.numpy(), targets[train], image.numpy(), targets[test])
    return found | (retrieval(image, embed_texts(model, prepared.tokens[test, 0])) if objective == "caption" else {})
