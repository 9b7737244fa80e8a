"""What checkpoints make of a data set: embedded in parts, and every pair scored.

The embeddings of PART rows by one checkpoint are an entry of the store. So a run that was stopped continues with the
first part that is missing, and memory does not grow with the number of pairs.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib import checkpoints, figures, runs, scores, store, study
from lib.captions import DataError
from lib.checkpoints import Checkpoint, CheckpointError, Source
from lib.decode import Row
from lib.export import export_pairs
from lib.model import random_crops
from lib.recipes import f_and_g

PART, STEP = 1000, 64  # rows per entry of the store; pictures per forward pass
VIEWS = 2  # light crops of a picture: each costs as much as the picture itself
HELD, KNOWN = 2000, 20_000  # most pairs that a score compares with, held-out ones and LEMoN's: more change little
LEAST = 40  # fewer pairs that no model saw are not held out; a sample of all pairs is, then
FORMS = {"clipmem": "contrast", "clipmem_plain": "plain", "clipmem_consistency": "consistency"}  # see `scores.align`


def begin(
    notebook: str, scale: str, dataset: str, captions: str, image: str, models: str, seen: str, force: bool
) -> tuple[study.Book, Source, list[Checkpoint]]:
    """Return where a notebook leaves its results, the pairs and the checkpoints, all named as in its parameters; print
    what they are, and how long embedding takes here.

    Without `models` these are f and g of notebook 02, seed 0, trained if they are missing, with the pool and external
    pairs of the data set. The drawn scenes are always those. Raise DataError, CheckpointError.
    """
    study.check_parameters(begin, locals())
    figures.theme()
    store.rebuild(float(os.environ.get("CLIPMEM_BEGUN", time.time())) if force else 0)
    names, entries, columns = ([one.strip() for one in text.split(",") if text] for text in (models, seen, captions))
    if len(names) > 2 or (entries and len(entries) != len(names)):
        raise CheckpointError("models: expected one or two, with a comma between; seen: none, or one entry per model")
    where, entries = dataset, entries or [""] * len(names)
    if not names or dataset == "scenes":
        base = study.plan("02_miscaptioned_memorization", scale, dataset, captions, image)[1]["CLIP"]
        key = runs.run_key(base)
        folder = store.get_or_build("export", f"{key}-pairs", partial(export_pairs, base), {"run": key})
        where, columns, image = str(folder / "pairs.parquet"), ["caption"], "image"
    if names:
        loaded = [checkpoints.load(name) for name in names]
    else:
        loaded, entries = [], ["seen_f", "seen_g"]
        for name, recipe in zip("fg", f_and_g(base, 0), strict=True):
            runs.train_all([recipe])
            key = runs.run_key(recipe)
            folder = store.get_or_build("export", key, partial(checkpoints.export, recipe), {"run": key})
            loaded.append(replace(checkpoints.load(f"local-dir:{folder}"), name=f"{name} of notebook 02, seed 0"))
    source = checkpoints.open_source(where, image, columns, entries)
    torch.set_num_threads(runs.side_by_side())  # one large model after the other, and not several small ones at once
    for name, one, marks in zip("fg", loaded, source.seen, strict=False):
        size, known = sum(p.numel() for p in one.model.parameters()) / 1e6, int((marks == 1).sum())
        told = "which pairs it saw is unknown" if np.isnan(marks).all() else f"it saw {known:,} of the pairs"
        print(f"{name}: {one.name}, {size:.1f} million parameters, {told}")
    minutes = np.mean([_seconds(source, one) for one in loaded]) * 10_000 / 60
    print(f"{source.count:,} pairs; embedding takes about {minutes:.1f} minutes per 10,000 pairs and model here")
    about = study.provenance(notebook, scale, dataset, source.digest, [one.digest for one in loaded], 1)
    return study.Book(notebook=notebook, dataset=dataset, scale=scale, about=about), source, loaded


def _seconds(source: Source, checkpoint: Checkpoint) -> float:
    """Return the seconds that one pair takes, measured on the first STEP pairs."""
    start = time.monotonic()
    batch = list(islice(source.read(checkpoint.preprocess), STEP))
    vectors(checkpoint, batch)
    return (time.monotonic() - start) / len(batch)


@torch.no_grad()
def vectors(checkpoint: Checkpoint, batch: Sequence[Row]) -> dict[str, Tensor]:
    """Return what one checkpoint makes of N pairs: unit vectors `[N, D]` image and text (of caption 0), views (mean of
    VIEWS light crops), and the change `[N]` under them, see `scores.single_model`."""
    model, where = checkpoint.model, next(checkpoint.model.parameters()).device
    x = torch.stack([row.image for row in batch]).to(where)
    drawn = [torch.Generator().manual_seed(batch[0].number * 1009 + view) for view in range(VIEWS)]
    shown = [x, *(random_crops(x, 0.9, generator) for generator in drawn)]
    text = model.encode_text(checkpoint.tokenize([row.captions[0] for row in batch]).to(where), normalize=True).cpu()
    image, *crops = [model.encode_image(one, normalize=True).cpu() for one in shown]
    change = torch.stack([((crop - image) * text).sum(dim=1).abs() for crop in crops]).mean(dim=0)
    return {"image": image, "views": torch.stack(crops).mean(dim=0), "text": text, "change": change}


def embed(source: Source, checkpoint: Checkpoint) -> list[Path]:
    """Return the folders of the store that hold each part: vectors.safetensors and table.parquet (pair_id, caption).
    What is missing is made now."""
    count = -(-source.count // PART)
    keys = [hashlib.sha256(f"{source.digest} {checkpoint.digest} {n}".encode()).hexdigest()[:16] for n in range(count)]
    first = next((part for part in range(count) if not store.finished("embedding", keys[part])), count)

    def entry(part: int, rows: Iterator[Row]) -> Path:
        def build(folder: Path) -> None:
            made, table = [], []
            while batch := list(islice(rows, STEP)):
                made.append(vectors(checkpoint, batch))
                table += [(row.number, row.captions[0]) for row in batch]
            names = made[0] if made else ()  # nothing, where no row of a part can be used
            store.write_tensors(folder / "vectors.safetensors", {n: torch.cat([one[n] for one in made]) for n in names})
            store.write_table(folder / "table.parquet", pd.DataFrame(table, columns=["pair_id", "caption"]))

        return store.get_or_build("embedding", keys[part], build, {"checkpoint": checkpoint.name, "part": part})

    with runs.progress_bar(f"embedding by {checkpoint.name}", count - first) as bar:
        rows = source.read(checkpoint.preprocess, first * PART) if first < count else iter(())
        for part, some in groupby(rows, lambda row: row.number // PART):
            entry(part, some)
            bar.update(1)
    return [entry(part, iter(())) for part in range(count)]


def score(source: Source, checkpoints: Sequence[Checkpoint], path: Path) -> pd.DataFrame:
    """Write one row per pair to `path` (parquet), from parts in the store or made now; return it without its captions.

    Columns: pair_id (its row), caption, of each model seen_f (true, false or missing), similarity_f, loss_f,
    augmentation_f, lemon_f (and _g); with two models the FORMS of CLIPMem, f - g, or g - f where g alone is known to
    have seen the pair. Held-out are pairs that no model saw, LEMoN's neighbours pairs that the model saw; where too few
    are known to be so, random pairs, without the scored one.
    """
    folders = [embed(source, checkpoint) for checkpoint in checkpoints]
    every, unseen = np.arange(source.count), np.flatnonzero(np.all([seen == 0 for seen in source.seen], axis=0))
    banks = []
    for parts, seen in zip(folders, source.seen, strict=True):
        trained = np.flatnonzero(seen == 1)
        held, known = unseen if len(unseen) >= LEAST else every, trained if len(trained) > scores.NEIGHBOURS else every
        banks.append([_gathered(parts, rows, most) for rows, most in ((held, HELD), (known, KNOWN))])
    with store.atomic(path) as temporary:
        writer = None
        for same in zip(*folders, strict=True):
            if len(table := _scored(source, checkpoints, same, banks)):
                arrow = pa.Table.from_pandas(table, preserve_index=False)
                writer = writer or pq.ParquetWriter(temporary, arrow.schema)
                writer.write_table(arrow)
        if writer is None:
            raise DataError("no pair of the data set can be used")
        writer.close()
    return pd.read_parquet(path, columns=[name for name in pq.read_schema(path).names if name != "caption"])


def _read(part: Path) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    return pd.read_parquet(part / "table.parquet"), load_file(part / "vectors.safetensors")


def _gathered(parts: Sequence[Path], rows: np.ndarray, most: int) -> tuple[pd.Index, Tensor, Tensor]:
    """Return of at most so many of the rows, drawn by chance, pair_id and vectors `[M, D]` of image and text."""
    wanted, found = np.random.default_rng(0).permutation(rows)[:most], []
    for table, made in map(_read, parts):
        if len(places := np.flatnonzero(table["pair_id"].isin(wanted))):
            found.append((table["pair_id"].to_numpy()[places], made["image"][places], made["text"][places]))
    ids, image, text = zip(*found, strict=True)
    return pd.Index(np.concatenate(ids)), torch.cat(image), torch.cat(text)


def _scored(source: Source, checkpoints: Sequence[Checkpoint], parts: Sequence[Path], banks: list) -> pd.DataFrame:
    """Return the rows of `score` of one part, none where no pair of it can be used."""
    read, forms = [_read(part) for part in parts], []
    table = read[0][0]
    for name, checkpoint, seen, (_, made), both in zip("fg", checkpoints, source.seen, read, banks, strict=False):
        if len(table):
            (held_ids, held_image, held_text), (known_ids, known_image, known_text) = both
            held_own, known_own = (torch.from_numpy(x.get_indexer(table["pair_id"])) for x in (held_ids, known_ids))
            image, text, scale = made["image"], made["text"], float(checkpoint.model.logit_scale.detach().exp())
            loss = scores.pair_loss(image, text, held_image, held_text, held_own, scale)
            k = min(scores.NEIGHBOURS, len(known_ids) - 1)
            forms.append(scores.align(made["views"][None], text, held_image, held_text, held_own))
            table[f"seen_{name}"] = pd.array([None if x != x else bool(x) for x in seen[table["pair_id"]]], "boolean")
            table[f"similarity_{name}"] = (image * text).sum(dim=1).numpy()
            table[f"loss_{name}"] = loss.numpy()
            table[f"augmentation_{name}"] = made["change"].numpy()
            table[f"lemon_{name}"] = scores.lemon(image, text, known_image, known_text, known_own, k).numpy()
    if len(forms) == 2:
        turned = np.where((table["seen_g"].fillna(False) & ~table["seen_f"].fillna(True)).to_numpy(bool), -1, 1)
        for name, form in FORMS.items():
            table[name] = turned * (getattr(forms[0], form) - getattr(forms[1], form)).numpy()
    return table
