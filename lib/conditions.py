"""What each notebook compares: the name of a condition -> the recipe of f, seed 0."""

from dataclasses import replace

from lib.recipes import Recipe

REMOVAL_RULES: tuple[str, ...] = ("clipmem", "held-out similarity", "early loss", "random", "oracle")
WRONG = 0.4  # share of wrong captions in the data of the removal study: with few there is little to gain
TOP = 0.05  # share of the pairs that MultiMem regroups; taken for its removal, too, where it says 100 to 200 pairs
TUNING = 3  # epochs of fine-tuning after a removal: a fifth of those on scenes at laptop
NOISE = (0.5, 1.0)  # lengths of the noise relative to the embedding: a turn by 27 and 45 degrees


def _with_removal(base: Recipe, share: float, rule: str) -> Recipe:
    """Return a recipe that removes a share of the pairs and takes as many steps as `base`."""
    return replace(base, remove=share, remove_by=rule, epochs=round(base.epochs / (1 - share)))


def _noisy(base: Recipe, pool: int) -> Recipe:
    """Return a recipe for data of which WRONG is captioned wrongly, with `pool` pairs and no shared ones."""
    data = replace(base.data, shared=0, pool=pool, swapped=WRONG, partly_swapped=0.0, inverted=0.0)
    return replace(base, data=data)


def paradigms(base: Recipe) -> dict[str, Recipe]:
    """Notebook 01: the partner of the image changes, and nothing else."""
    return {"caption": base, "label": replace(base, objective="label"), "view": replace(base, objective="view")}


def attribution(base: Recipe) -> dict[str, Recipe]:
    """Notebook 03: each intervention on one encoder has its twin on the other. The swap test needs CLIP alone, and so
    photographs, which train more slowly, have nothing else."""
    once, again = replace(base, evaluations=1), replace(base, epochs=2 * base.epochs, evaluations=6)
    found = {
        "CLIP": base,
        "image retrained": replace(again, frozen="text"),
        "text retrained": replace(again, frozen="image"),
        "image augmented": replace(once, crop=0.5, colour=0.2),
        "words dropped": replace(once, word_dropout=0.3),
        "image noise 0.5": replace(once, image_noise=0.5),
        "text noise 0.5": replace(once, text_noise=0.5),
    }
    return found if base.data.dataset == "scenes" else {"CLIP": base}


def mitigations(base: Recipe) -> dict[str, Recipe]:
    """Notebook 04: more captions, noise on text embeddings, image augmentation; and removal, from data of which WRONG
    is captioned wrongly, with no shared pairs: so every training pair has a CLIPMem."""
    once, data = replace(base, evaluations=1), base.data
    found = {
        "CLIP": base,
        "5 captions": replace(once, n_captions=5),
        "a fifth of the epochs": replace(once, epochs=max(1, round(base.epochs / 5))),
        **{f"text noise {length}": replace(once, text_noise=length) for length in NOISE},
        "image augmented": replace(once, crop=0.5, colour=0.2),
        "oracle": _with_removal(base, data.swapped * data.pool / (2 * data.shared + data.pool), "oracle"),
    }
    rules, pool = REMOVAL_RULES, 2 * data.shared + data.pool
    if data.dataset != "scenes":  # as many pairs as there are, and the conditions that the claims need
        found = {name: found[name] for name in ("CLIP", "5 captions", "a fifth of the epochs", "text noise 0.5")}
        rules, pool = ("clipmem", "random", "oracle"), data.shared + data.pool
    noisy = _noisy(base, pool)
    return found | {"noisy": noisy} | {f"noisy, {rule}": _with_removal(noisy, WRONG, rule) for rule in rules}


def beyond(base: Recipe) -> dict[str, Recipe]:
    """Notebook 06: another loss, width, depth and batch; other numbers of pairs and epochs; MultiMem's mitigations, on
    the noisy data of notebook 04. Of scenes more can be drawn: so many that each is seen once, in as many steps as CLIP
    takes."""
    once, data, half = replace(base, evaluations=1), base.data, base.data.pool // 2
    found = {
        "CLIP": base,
        "SigLIP": replace(base, objective="sigmoid"),
        "half width": replace(once, width=0.5),
        "double width": replace(once, width=2.0),
        "half depth": replace(once, depth=0.5),
        "double depth": replace(once, depth=2.0),
        "double batch": replace(once, batch=2 * base.batch),
    }
    scenes, usual = data.dataset == "scenes", data.shared + half  # pairs that each model trains on
    for pairs in [round(factor * usual) for factor in ((0.5, 1, 2, 4, base.epochs) if scenes else (0.25, 0.5, 1))]:
        for epochs in (1, 4, base.epochs):
            if pairs * epochs <= 1.1 * usual * base.epochs and (pairs, epochs) != (usual, base.epochs):
                sized = replace(data, shared=max(0, pairs - half))
                found[f"{pairs:,} pairs, {epochs} epoch{'s' * (epochs > 1)}"] = replace(once, data=sized, epochs=epochs)
    noisy = _noisy(base, (2 if scenes else 1) * data.shared + data.pool)
    top = replace(noisy, remove_by="clipmem")  # evaluated as often as noisy, whose f and g rank the pairs
    return found | {
        "noisy": noisy,
        "noisy, 5 captions": replace(noisy, evaluations=1, n_captions=5),
        "noisy, regrouped": replace(top, regrouped=TOP, n_captions=5, text_noise=0.5),
        "noisy, fine-tuned": replace(top, remove=TOP, finetuned=TUNING),
    }


CONDITIONS = {
    "01_supervised_vs_ssl": paradigms,
    "02_miscaptioned_memorization": lambda base: {"CLIP": base},
    "03_encoder_attribution": attribution,
    "04_mitigation_utility": mitigations,
    "06_beyond_clip": beyond,
}
