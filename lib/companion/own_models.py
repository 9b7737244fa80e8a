"""Notebook 05: open_clip checkpoints, or f and g of notebook 02, embed captioned pairs, and every pair is scored."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import datasets
import numpy as np
import open_clip
import pandas as pd
import torch

from lib import data, model, photos, recipes, runs, scores, store
from lib.photos import DataError

BATCH, BLOCK, VIEWS = 64, 1000, 2  # pairs that are embedded, and scored, at once; light crops of each picture
HELD, KNOWN = 2000, 20_000  # most pairs that a score compares with, held-out ones and LEMoN's: more change little
MIN_UNSEEN = 40  # where fewer pairs are known to be unseen, a sample of all pairs is held out


class Checkpoint(NamedTuple):
    """A model of open_clip in fp32, on the fastest device, with its own preprocessing."""

    name: str
    digest: str  # of its configuration and tensors
    clip: Any
    preprocess: Callable  # a picture to [3, H, W], normalised
    tokenize: Callable  # N captions to [N, L]


class Pairs(NamedTuple):
    """Captioned pictures, which are streamed, and what is known of them."""

    source: photos.Source
    fingerprint: str
    known: pd.DataFrame  # by row: seen_f (and _g): 1 trained on, 0 not, NaN unknown; perhaps corruption: the truth


def load(name: str) -> Checkpoint:
    """Return a checkpoint: ARCHITECTURE:WEIGHTS (a file or a tag of open_clip), hf-hub:OWNER/NAME or local-dir:FOLDER.
    Nothing is unpickled, and no foreign code run. Raise DataError for one that cannot be used as it is."""
    architecture, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition(":")
    try:
        if "trust_remote_code" in json.dumps(config := open_clip.get_model_config(architecture)):
            raise ValueError("its configuration asks for foreign code (trust_remote_code)")
        # These two stretch positions of another size without a word; without them, torch refuses such weights
        with patch("open_clip.factory.resize_pos_embed"), patch("open_clip.factory.resize_text_pos_embed"):
            clip, preprocess = open_clip.create_model_from_pretrained(architecture, weights or None, weights_only=True)
        tokenize = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, torch, safetensors and the Hub raise errors of dozens of kinds
        raise DataError(f"checkpoint '{name}' cannot be loaded: {error!s:.400}") from error
    digest = hashlib.sha256(json.dumps([config, clip.visual.preprocess_cfg], default=str).encode())
    for key, tensor in clip.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return Checkpoint(name, digest.hexdigest(), clip.eval().to(model.device()), preprocess, tokenize)


def of_run(recipe: recipes.Recipe, name: str) -> Checkpoint:
    """Return a model that is trained here as a checkpoint, for the first captions of its own data set."""
    own = data.prepare(recipe.data)
    tokens = {captions[0]: ids[0] for captions, ids in zip(own.captions, own.tokens, strict=True)}
    return Checkpoint(
        *(name, runs.run_key(recipe), runs.load(recipe)),
        preprocess=lambda picture: model.normalise(torch.from_numpy(photos.square(picture, recipe.data.pixels))),
        tokenize=lambda captions: torch.from_numpy(np.stack([tokens[caption] for caption in captions])),
    )


def begin(scale: str, dataset: str, captions: str, image: str, models: str, seen: str) -> tuple[Pairs, list]:
    """Return the pairs and the one or two checkpoints that the parameters of notebook 05 name. Without `models` these
    are f and g of notebook 02, seed 0, and its corrupted pairs. The drawn scenes are always those. Raise DataError."""
    names, entries, columns = ([one.strip() for one in text.split(",") if text] for text in (models, seen, captions))
    if len(names) > 2 or len(entries) not in (0, len(names)):
        raise DataError("models: expected one or two, with a comma between; seen: none, or one entry per model")
    if names and dataset != "scenes":
        source, about = photos.open_source(dataset, image, columns), photos.state(dataset)
    else:
        base = runs.plan("02_miscaptioned_memorization", scale, dataset, captions, image)["CLIP"]
        source, about = of_study(base), [data.prepare(base.data).fingerprint, str(base.data)]
    checkpoints = [load(name) for name in names]
    if not names:
        runs.train_all(both := recipes.f_and_g(base, 0))
        checkpoints = [of_run(one, f"{m} of notebook 02, seed 0") for m, one in zip("fg", both, strict=True)]
    entries = entries or [""] * len(names) or ["seen_f", "seen_g"]
    known = {f"seen_{m}": membership(entry, source) for m, entry in zip("fg", entries, strict=False)}
    if "corruption" in source.rows.features:
        known["corruption"] = pd.Series(photos.column(source, "corruption"))
    fingerprint = hashlib.sha256(json.dumps([about, source.image, source.captions]).encode()).hexdigest()
    return Pairs(source, fingerprint, pd.DataFrame(known)), checkpoints


def of_study(recipe: recipes.Recipe) -> photos.Source:
    """Return the pool and external pairs of a recipe's data as models see them, and which of them its f and g saw."""
    own, size = data.prepare(recipe.data), recipe.data.pixels
    table = own.table.loc[own.table["subset"].isin(recipes.CORRUPTED), ["caption", "corruption"]]
    for m, half in zip("fg", recipes.HALVES, strict=True):
        table[f"seen_{m}"] = table.index.isin(own.half(half, recipe.seed))
    pixels = own.images[table.index].transpose(0, 2, 3, 1)
    table["image"] = [f"P6 {size} {size} 255 ".encode() + one.tobytes() for one in pixels]  # PPM: nothing is lost
    rows = datasets.Dataset.from_pandas(table, preserve_index=False).to_iterable_dataset()
    return photos.Source("the pool and external pairs of notebook 02", rows, "image", ["caption"], "")


def membership(entry: str, source: photos.Source) -> pd.Series:
    """Return which rows one model saw: by a boolean column, or by a text file with the number of a row on each line; ""
    is unknown. Raise DataError."""
    if entry in ("", *source.rows.features):
        marks = photos.column(source, entry) if entry else []
        if wrong := [row for row, mark in enumerate(marks) if mark not in (None, False, True)]:
            raise DataError(f"column '{entry}', row {wrong[0]}: expected true, false or nothing")
        return pd.Series(marks, dtype=float)
    if not Path(entry).is_file():
        raise DataError(f"seen: '{entry}' is no column of {source.where}, and no file")
    lines = pd.Series(Path(entry).read_text(encoding="utf-8").rstrip().split("\n")).str.strip()
    rows = pd.Series(range(len(photos.column(source, source.captions[0])))).astype(str)
    for line, text in lines[~lines.isin(rows) | lines.duplicated()].items():
        raise DataError(f"{entry}, line {line + 1}: expected a row, 0 to {len(rows) - 1}, each once; got {text!r:.40}")
    return rows.isin(lines).astype(float)


@torch.no_grad()
def embed(checkpoint: Checkpoint, pairs: Pairs) -> pd.DataFrame:
    """Return a row per usable pair, from the store or made now: pair_id (the row), caption (the first one), the unit
    vectors `[D]` image, views (the mean of light crops) and text, and `change`, of the similarity under the crops."""

    def build(folder: Path) -> None:
        clip, tally, made = checkpoint.clip, photos.Tally(), list[pd.DataFrame]()
        rows = photos.stream(pairs.source, checkpoint.preprocess, tally)
        while batch := list(islice(rows, BATCH)):
            x, first = torch.stack([row.image for row in batch]).to(model.device()), batch[0].number
            crops = [model.light_crop(x, torch.Generator().manual_seed(first * 1009 + i)) for i in range(VIEWS)]
            image, *views = [clip.encode_image(one, normalize=True).cpu() for one in (x, *crops)]
            tokens = checkpoint.tokenize([row.captions[0] for row in batch])
            text = clip.encode_text(tokens.to(model.device()), normalize=True).cpu()
            change = ((torch.stack(views) - image) * text).sum(dim=-1).abs().mean(dim=0)
            if not torch.isfinite(change * clip.logit_scale.exp().cpu()).all():
                raise DataError(f"{checkpoint.name} holds NaN or numbers that are too large: did its training diverge?")
            table = pd.DataFrame([(row.number, row.captions[0]) for row in batch], columns=["pair_id", "caption"])
            vectors = {"image": image, "views": torch.stack(views).mean(dim=0), "text": text}
            made.append(table.assign(change=change, **{name: [*one.numpy()] for name, one in vectors.items()}))
        tally.report(pairs.source.where)
        store.write_table(folder / "table.parquet", pd.concat(made))

    key = hashlib.sha256(f"{recipes.VERSION} {pairs.fingerprint} {checkpoint.digest}".encode()).hexdigest()[:16]
    folder = store.get_or_build("embedding", key, build, {"checkpoint": checkpoint.name, "pairs": pairs.source.where})
    return pd.read_parquet(folder / "table.parquet")


def score(pairs: Pairs, checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """Return a row per usable pair: pair_id, caption, `known`, and of each model plain_f, contrast_f (`scores.align`),
    similarity_f, loss_f, augmentation_f, lemon_f (and _g); of two models clipmem and clipmem_plain: f - g, or g - f
    where g alone saw the pair. Held-out are pairs that no model saw, LEMoN's neighbours pairs that the model saw; where
    too few are known to be so, random ones, without the scored one. Raise DataError for too few pairs."""
    embedded = [embed(checkpoint, pairs) for checkpoint in checkpoints]
    table = embedded[0][["pair_id", "caption"]].join(pairs.known, on="pair_id")
    rng, every = np.random.default_rng(0), np.arange(len(table))
    if len(every) <= scores.NEIGHBOURS:
        raise DataError(f"expected more than {scores.NEIGHBOURS} pairs that can be used, got {len(every)}")
    unseen = np.flatnonzero((table.filter(regex="^seen_") == 0).all(axis=1))
    held = rng.permutation(unseen if len(unseen) >= MIN_UNSEEN else every)[:HELD]
    for m, checkpoint, made in zip("fg", checkpoints, embedded, strict=False):
        image, views, text = (torch.from_numpy(np.stack(made[name])) for name in ("image", "views", "text"))
        trained, scale = np.flatnonzero(table[f"seen_{m}"] == 1), float(checkpoint.clip.logit_scale.detach().exp())
        known = rng.permutation(trained if len(trained) > scores.NEIGHBOURS else every)[:KNOWN]
        table[f"similarity_{m}"], table[f"augmentation_{m}"] = (image * text).sum(dim=1), made["change"]
        for rows in np.split(every, every[BLOCK::BLOCK]):
            of_held = image[held], text[held], scores.positions(rows, held)
            of_known = image[known], text[known], scores.positions(rows, known)
            found = scores.align(views[None, rows], text[rows], *of_held)._asdict()
            found["loss"] = scores.pair_loss(image[rows], text[rows], *of_held, scale)
            found["lemon"] = scores.lemon(image[rows], text[rows], *of_known, scores.NEIGHBOURS)
            table.loc[rows, [f"{name}_{m}" for name in found]] = torch.stack([*found.values()], dim=1).numpy()
    if len(checkpoints) == 2:
        sign = np.where((table["seen_g"] == 1) & (table["seen_f"] == 0), -1, 1)
        table["clipmem"] = sign * (table["contrast_f"] - table["contrast_g"])
        table["clipmem_plain"] = sign * (table["plain_f"] - table["plain_g"])
    return table.astype({name: "boolean" for name in table if name.startswith("seen_")})
