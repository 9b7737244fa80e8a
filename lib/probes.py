"""What a frozen model is good for beyond retrieval: linear probes and zero-shot classes."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.model import CLIP
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from lib import models
from lib.captions import encode
from lib.data import Prepared
from lib.embeddings import of_images, of_texts
from lib.probe_sets import Labelled
from lib.utility import retrieval

STRENGTHS = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the logistic regression's L2 penalty, the simplest fit first
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, per image
LONGEST = 77  # tokens of a prompt before those that a model cannot read are left out
PHOTO, SCENE = "a photo of a {}", "a {}"


# --- probes ---


def linear_probe(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy in [0, 1] of a logistic regression on standardised features; NaN with fewer than two classes.

    Its L2 strength is the one that does best on a held-out fifth of the training rows.

    Args:
        train: features [N, D] with classes int [N].
        test: features [M, D] with classes int [M].
    """
    train, test = _standardised(train, test)
    held = np.random.default_rng(0).permutation(len(train)) < len(train) // 5
    if len(np.unique(train_y[~held])) < 2 or not len(test):
        return float("nan")

    def accuracy(fit_on: np.ndarray, strength: float, x: np.ndarray, y: np.ndarray) -> float:
        return float((_logistic(train[fit_on], train_y[fit_on], strength, x) == y).mean())

    best = max(STRENGTHS, key=lambda strength: accuracy(~held, strength, train[held], train_y[held]))
    return accuracy(np.full(len(train), True), best, test, test_y)


def _logistic(train: np.ndarray, y: np.ndarray, strength: float, test: np.ndarray) -> np.ndarray:
    """Classes [M] that scikit-learn's LogisticRegression(C=1/strength) predicts, in a fraction of its time.

    Embeddings lie in a narrow cone, where L-BFGS takes hundreds of steps. In coordinates in which the curvature is near
    1 in every direction it takes 20; the penalty is turned and stretched along, so the minimum is the same.
    """
    classes, y = np.unique(y, return_inverse=True)
    values, vectors = np.linalg.eigh(train.T @ train)
    stretch = np.sqrt(np.maximum(values, 0) / len(classes) + strength)
    x = np.hstack([train @ (vectors / stretch), np.full((len(train), 1), np.sqrt(len(classes) / len(train)))])
    penalty = np.append(strength / stretch**2, 0)[:, None]  # none on the intercept
    truth = np.eye(len(classes))[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, len(classes))
        log_p = log_softmax(x @ weights, axis=1)
        value = 0.5 * (penalty * weights**2).sum() - (truth * log_p).sum()
        return float(value), (x.T @ (np.exp(log_p) - truth) + penalty * weights).ravel()

    found = minimize(loss, np.zeros(x.shape[1] * len(classes)), jac=True, method="L-BFGS-B", options={"gtol": 1e-2})
    weights = found.x.reshape(-1, len(classes))
    return classes[(test @ (vectors / stretch) @ weights[:-1] + weights[-1] * x[0, -1]).argmax(axis=1)]


def ridge_probe(train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """What a ridge regression on targets finds, in milliseconds: in [0, 1], NaN where the test rows have no class.

    Accuracy over the rows with a class when no row has several, else average precision, mean over the classes that
    the test rows have. The shrinkage is the one with the smallest leave-one-out error.

    Args:
        train: features [N, D] with targets [N, K] as of `labels.targets`.
        test: features [M, D] with targets [M, K].
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import average_precision_score

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
    """Both as float64, by mean and deviation of `train`; what does not vary stays near 0."""
    centre, spread = train.mean(axis=0, dtype=float), np.maximum(train.std(axis=0, dtype=float), 1e-6)
    return (train - centre) / spread, (test - centre) / spread


def zero_shot(
    model: CLIP, images: Tensor, targets: np.ndarray, class_names: tuple[str, ...], token_ids: np.ndarray,
    prompt: str = PHOTO,
) -> tuple[float, int]:  # fmt: skip
    """Accuracy in [0, 1] of the nearest prompt, and the number of classes it was among.

    Only classes count whose prompt the model can read (all its tokens in `token_ids`, within its context), and only
    their images. NaN with fewer than two of them, or without images.

    Args:
        images: unit vectors [M, D] on the CPU.
        targets: int [M], indices into `class_names`.
        token_ids: int64 [V], open_clip's id of each compact id.
        prompt: with {} for the name of a class.
    """
    ids = encode([[prompt.format(name)] for name in class_names], 1, LONGEST)[:, 0]
    context = len(model.positional_embedding)
    readable = np.flatnonzero(np.isin(ids, token_ids).all(axis=1) & ~ids[:, context:].any(axis=1))
    asked = np.isin(targets, readable)
    if len(readable) < 2 or not asked.any():
        return float("nan"), len(readable)
    tokens = torch.from_numpy(np.searchsorted(token_ids, ids[readable, :context]))
    with torch.no_grad():
        text = models.encode_text(model, tokens.to(next(model.parameters()).device)).cpu()
    nearest = (images[torch.from_numpy(asked)] @ text.T).argmax(dim=1).numpy()
    return float((readable[nearest] == targets[asked]).mean()), len(readable)


# --- all of it ---


def utilities(model: CLIP, prepared: Prepared, labelled: list[Labelled]) -> dict[str, float]:
    """What one model is good for, each in [0, 1].

    Retrieval on the disjoint pairs (`utility.retrieval`); for each labelled set `probe_<name>`, `zero_shot_<name>` and
    `classes_<name>`, the number of classes that zero-shot was among; where the pairs have a label of their own the
    same for `labels`, the probe trained on the shared and independent pictures, nothing planted in them, and all tested
    on the disjoint ones.
    """
    disjoint = prepared.subsets["disjoint"]
    image = of_images(model, prepared.pictures, disjoint)[0]
    found = retrieval(image, of_texts(model, prepared, disjoint))
    for one in labelled:
        both = one.train_images, one.test_images
        train, test = (of_images(model, x.__getitem__, np.arange(len(x)))[0] for x in both)
        answers = _probed(model, prepared, train, one.train_targets, test, one.test_targets, one.class_names)
        found |= {f"{what}_{one.name}": value for what, value in answers.items()}
    labels = prepared.pairs.labels
    if labels is not None:
        rows = np.concatenate([prepared.subsets["shared"], prepared.subsets["independent"]])
        rows, known = rows[labels[rows] >= 0], labels[disjoint] >= 0
        train, test = of_images(model, prepared.pairs.images.__getitem__, rows)[0], image[torch.from_numpy(known)]
        names = prepared.pairs.label_names
        answers = _probed(model, prepared, train, labels[rows], test, labels[disjoint[known]], names)
        found |= {f"{what}_labels": value for what, value in answers.items()}
    return found


def _probed(
    model: CLIP, prepared: Prepared, train: Tensor, train_y: np.ndarray, test: Tensor, test_y: np.ndarray,
    names: tuple[str, ...],
) -> dict[str, float]:  # fmt: skip
    prompt = SCENE if prepared.data.dataset == "scenes" else PHOTO
    accuracy, classes = zero_shot(model, test, test_y, names, prepared.token_ids, prompt)
    probe = linear_probe(train.numpy(), train_y, test.numpy(), test_y)
    return {"probe": probe, "zero_shot": accuracy, "classes": classes}


def along_training(model: CLIP, objective: str, prepared: Prepared) -> dict[str, float]:
    """Utility on the disjoint pairs, quick enough for every look: `probe`, the ridge probe of the labels fitted on the
    shared pairs (NaN without labels), and retrieval where there are captions."""
    train, test = prepared.subsets["shared"], prepared.subsets["disjoint"]
    image, found = of_images(model, prepared.pictures, test)[0], {"probe": float("nan")}
    if prepared.class_names:
        seen, targets = of_images(model, prepared.pictures, train)[0], prepared.targets
        found["probe"] = ridge_probe(seen.numpy(), targets[train], image.numpy(), targets[test])
    return found | (retrieval(image, of_texts(model, prepared, test)) if objective == "caption" else {})
