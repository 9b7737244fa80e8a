"""Models of your own: any open_clip checkpoint loaded, a data set of any size opened, and who was trained on what."""

import hashlib
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from lib import decode, runs, sources, store
from lib import model as models
from lib.captions import DataError
from lib.data import identity, prepare
from lib.recipes import Recipe, did_you_mean, model_config


class CheckpointError(DataError):
    """A checkpoint cannot be used; the message names it and says what differs."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that embeds, with what belongs to it."""

    name: str
    model: Any
    preprocess: Callable[[Image.Image], Tensor]  # to [3, H, W], at its own resolution
    tokenize: Callable[[list[str]], Tensor]  # to [N, context]
    digest: str  # SHA-256 of its configuration and tensors


@dataclass(frozen=True)
class Source:
    """A data set of N rows, undecoded."""

    read: Callable[..., Iterator[decode.Row]]  # `decode.read_rows` of it: pass `make`, and perhaps `first` or `only`
    count: int  # N
    seen: list[np.ndarray]  # of each model float [N]: 1 it was trained on the pair, 0 it was not, NaN unknown
    digest: str  # of what it holds
    where: str  # its path or name


def load(name: str) -> Checkpoint:
    """Return a checkpoint, named as open_clip does: ARCHITECTURE:WEIGHTS (a file or a tag), hf-hub:OWNER/NAME or
    local-dir:FOLDER; in fp32, on the fastest device. Nothing is unpickled, no foreign code run. Raise CheckpointError.
    """
    architecture, _, weights = name.partition(":")
    if architecture in ("hf-hub", "local-dir"):
        architecture, weights = name, ""
    try:
        if (config := open_clip.get_model_config(architecture)) is None:
            raise ValueError(f"no architecture {architecture!r}.{did_you_mean(architecture, open_clip.list_models())}")
        if "trust_remote_code" in json.dumps(config):
            raise ValueError("its configuration asks for foreign code (trust_remote_code)")
        model, preprocess = open_clip.create_model_from_pretrained(architecture, weights or None, weights_only=True)
        tokenize, own = open_clip.get_tokenizer(architecture), model.state_dict()
        held = open_clip.factory.load_state_dict(weights) if os.path.isfile(weights) else {}
        for key in [key for key in own if key in held and held[key].ndim > 1 and held[key].shape != own[key].shape]:
            # of positions, which open_clip stretches without a word
            raise ValueError(f"{key}: {tuple(held[key].shape)} in the file, {tuple(own[key].shape)} in the model")
    except Exception as error:  # open_clip, torch, safetensors and the Hub raise errors of dozens of kinds
        lines = [textwrap.shorten(line, 160, placeholder=" …") for line in str(error).strip().splitlines()]
        said = " ".join(lines[:6]) + " …" * (len(lines) > 6)
        raise CheckpointError(f"checkpoint '{name}' cannot be loaded: {said or type(error).__name__}") from error
    about = [config, open_clip.model.get_model_preprocess_cfg(model)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for key, tensor in sorted(own.items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return Checkpoint(name, model.eval().to(models.device()), preprocess, tokenize, digest.hexdigest())


def export(recipe: Recipe, folder: Path) -> None:
    """Write a trained run in open_clip's own format, for `local-dir:FOLDER`: the same embeddings, with the compact
    vocabulary expanded to open_clip's; words that no caption had get the zero vector."""
    tensors, prepared, config = runs.load(recipe).cpu().state_dict(), prepare(recipe.data), model_config(recipe.model)
    config["vision_cfg"]["image_size"] = recipe.data.pixels
    config["text_cfg"]["context_length"] = prepared.tokens.shape[2]
    words = torch.zeros(open_clip.model.CLIPTextCfg().vocab_size, tensors["token_embedding.weight"].shape[1])
    words[torch.from_numpy(prepared.token_ids)] = tensors["token_embedding.weight"]
    store.write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    store.write_tensors(folder / "open_clip_model.safetensors", tensors | {"token_embedding.weight": words})


def open_source(dataset: str, image: str, captions: Sequence[str], seen: Sequence[str]) -> Source:
    """Return a data set. `seen` says of each model which pairs it was trained on: a boolean column, a text file with
    the number of a row (from 0) per line, or "" unknown. Raise DataError."""
    opened, (_, where) = sources.open_rows(dataset, often=True), sources.locate(dataset)
    columns = sources.find_columns(opened, where, image, captions)._replace(label="")
    marks: dict[str, list[Any]] = {name: [] for name in (columns.captions[0], *seen) if name in opened.features}
    for batch in decode.batches(opened.select_columns(list(marks)), where):
        for name, values in marks.items():
            values += [row[name] if name in seen else None for row in batch]  # captions are counted, and not kept
    count = len(marks[columns.captions[0]])
    known = [_membership(entry, marks.get(entry), count, where) for entry in seen]
    about = json.dumps([identity(dataset, image), columns]).encode()
    return Source(
        read=partial(decode.read_rows, opened, where, columns),
        count=count,
        seen=known,
        digest=hashlib.sha256(about).hexdigest(),
        where=where,
    )


def _membership(entry: str, marks: list[Any] | None, count: int, where: str) -> np.ndarray:
    """Return `Source.seen` of one model, from its column or from a text file."""
    for row, mark in enumerate(marks or ()):
        if mark not in (None, False, True):
            raise DataError(f"{where}: column '{entry}', row {row}: expected true, false or nothing, got {mark!r}")
    if marks is not None or not entry:
        return np.array(marks or [None] * count, float)
    try:
        lines = Path(entry).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise DataError(f"seen: '{entry}' is no column of {where}, and no text file that can be read.") from error
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) >= count:
            raise DataError(f"{entry}, line {number}: expected the number of a row, 0 to {count - 1}, got {line!r:.40}")
    return np.isin(np.arange(count), np.array(lines, np.int64)).astype(float)
