"""Notebook 05: open_clip checkpoints, or the f and g that are here, embed captioned pairs, and every pair is scored."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import open_clip
import pandas as pd
import torch
from open_clip.convert import convert_state_dict
from PIL import Image
from safetensors.torch import load_file

from lib import model, photos, recipes, scores, store
from lib.companion import entries, live
from lib.photos import DataError

BATCH, BLOCK, VIEWS = 64, 1000, 2  # pairs that are embedded, and scored, at once; light crops of each picture
HELD, KNOWN = 2000, 20_000  # most pairs that a score compares with, held-out ones and LEMoN's: more change little
WRAPPERS, PREFIXES = ("state_dict", "model_state_dict", "model"), ("module.", "_orig_mod.", "model.")  # of weights
SCALAR = np.float64(0).__reduce__()[0]  # makes a NumPy number from its bytes; it is called by two names in files
NUMBERS: list[Any] = [SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), np.dtype]
NUMBERS += [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
MARKS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": None}  # in a .csv
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
    Nothing is unpickled but tensors and numbers, and no foreign code run. Raise DataError for one that does not fit."""
    architecture, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition(":")
    inside = sorted(path.name for path in Path(name[10:]).glob("*") if path.suffix in (".safetensors", ".bin", ".pth"))
    usual = [one for one in inside if one.startswith(("open_clip_model.", "open_clip_pytorch_model."))]
    if name.startswith("local-dir:") and not usual and len(inside) != 1:
        said = f"{name} holds {', '.join(inside) or 'no .safetensors, .bin or .pth file'}: expected one model"
        raise DataError(f"{said}. A .pt, or one of several files, is named by ARCHITECTURE:FILE.")
    own: dict[str, Any] = {"load_state_dict": tensors, "convert_state_dict": _convert, "resize_pos_embed": _compare}
    own["resize_text_pos_embed"] = lambda *_: None
    try:
        if not (config := open_clip.get_model_config(architecture)):
            raise DataError(f"open_clip knows no architecture '{architecture}': ARCHITECTURE:FILE, local-dir:FOLDER, …")
        if weights.endswith((".npy", ".npz")):
            raise DataError("NumPy files are not read: save the weights as safetensors")
        if "trust_remote_code" in json.dumps(config):
            raise DataError("its configuration asks for foreign code (trust_remote_code)")
        with patch.multiple("open_clip.factory", **own), patch("builtins.input", lambda *_: "no"):  # runs no code
            clip, preprocess = open_clip.create_model_from_pretrained(architecture, weights or None)
            tokenize = open_clip.get_tokenizer(architecture)
        if not torch.isfinite(clip.eval().encode_image(preprocess(Image.new("RGB", (64, 48)))[None])).all():
            raise DataError("it turns a black picture into numbers that are not finite")
    except Exception as error:  # open_clip, torch, safetensors and the Hub raise errors of dozens of kinds
        said = "it asks for foreign code" if "custom code" in str(error) else str(error) or type(error).__name__
        needs = f". It needs more packages: {sys.executable} -m pip install transformers sentencepiece"
        said = f"checkpoint '{name}' cannot be loaded: {said:.400}" + needs * ("transformers" in said)
        raise DataError(said) from error
    about = clip.visual.preprocess_cfg
    digest = hashlib.sha256(json.dumps([config, about], default=str).encode())
    for key, tensor in clip.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    quick = any(isinstance(part, open_clip.transformer.QuickGELU) for part in clip.modules())
    told = f"{type(clip).__name__}, {'QuickGELU' if quick else 'GELU'}, image size {about['size']}"
    print(f"{name}: {told}, mean ({', '.join(f'{one:.3f}' for one in np.atleast_1d(about['mean']))})")
    return Checkpoint(name, digest.hexdigest(), clip.to(model.device()), preprocess, tokenize)


def tensors(path: str, **_: Any) -> dict[str, torch.Tensor]:
    """Return the weights in a file, without what training loops wrap around them. Raise DataError for a file that is
    damaged, or holds code, several sets of weights, or numbers that are not finite."""
    with open(path, "rb") as file:
        if said := photos.sign(start := file.read(64)):
            raise DataError(f"{path} is {said}")
    try:
        with torch.serialization.safe_globals(NUMBERS):
            held = load_file(path) if start[8:9] == b"{" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # of pickle, zip, torch and safetensors
        said = "is no checkpoint, or is damaged or cut off: copy it again"
        if "GLOBAL" in str(error) or "TorchScript" in str(error):
            said = "holds more than tensors and numbers, which is not read: save model.state_dict() again"
        raise DataError(f"{path} {said}") from error
    ways = [one for one in _ways(held) if "logit_scale" in one] or _ways(held)
    if len(ways) != 1:
        raise DataError(f"{path} holds {len(ways)} sets of weights, expected one: save model.state_dict() again")
    for key, tensor in ways[0].items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all() and "attn_mask" not in key:
            raise DataError(f"{path}: '{key}' holds NaN or infinite numbers: did its training diverge?")
    return ways[0]


def _ways(held: Any) -> list[dict[str, torch.Tensor]]:
    """Return the sets of weights that a dictionary holds, itself and below WRAPPERS, their names without PREFIXES."""
    if not isinstance(held, dict):
        return []
    own = {str(key): one for key, one in held.items() if isinstance(one, torch.Tensor)}
    while prefix := next((one for one in PREFIXES if own and all(key.startswith(one) for key in own)), ""):
        own = {key.removeprefix(prefix): one for key, one in own.items()}
    return [own] * bool(own) + [way for name in WRAPPERS for way in _ways(held.get(name))]


def _convert(clip: Any, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Do as open_clip does, and give a model that was trained with SigLIP's loss its bias."""
    if "logit_bias" in held and clip.logit_bias is None:
        clip.logit_bias = torch.nn.Parameter(torch.zeros_like(held["logit_bias"]))
    return convert_state_dict(clip, held)


def _compare(held: dict[str, torch.Tensor], clip: Any, *_: Any) -> None:
    """Raise DataError for weights that do not fit the model. open_clip would stretch positions of another size."""
    kinds, of = {True: "float", False: "not float"}, (clip.state_dict(), held)
    wanted, given = [{k: (*one.shape, kinds[one.is_floating_point()]) for k, one in x.items()} for x in of]
    if wrong := [key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key)]:
        key = min(given.keys() - wanted.keys() or wrong)
        said = f"'{key}' is {given.get(key, 'missing')}, the configuration says {wanted.get(key, 'that there is none')}"
        raise DataError(f"its weights do not fit, in {len(wrong)} tensors: {said}")


def of_here() -> list[Checkpoint]:
    """Return the models of figures/scenes-laptop/live as checkpoints, for the first captions of their scenes."""
    own, models = live.load()
    tokens = {captions[0]: ids[0] for captions, ids in zip(own.captions, own.tokens, strict=True)}
    preprocess = lambda picture: model.normalise(torch.from_numpy(photos.square(picture, own.config.pixels)))  # noqa: E731
    tokenize = lambda captions: torch.from_numpy(np.stack([tokens[caption] for caption in captions]))  # noqa: E731
    parts = [(one, live.FOLDER / f"{role}.safetensors") for role, one in models.items()]
    return [Checkpoint(path.name, store.digest(path), clip, preprocess, tokenize) for clip, path in parts]


def begin(dataset: str, captions: str, image: str, models: str, seen: str) -> tuple[Pairs, list]:
    """Return the pairs and the one or two checkpoints that the parameters of notebook 05 name. Without `models` these
    are the f and g that are here, and the corrupted pairs of their scenes. Raise DataError."""
    names, marks, given = entries(models), entries(seen), [captions] if isinstance(captions, str) else captions or []
    columns = tuple(filter(None, map(str.strip, ",".join(given).split(","))))
    if len(names) > 2 or len(marks) not in (0, len(names)):
        raise DataError("models: expected one or two, with a comma between; seen: none, or one entry per model")
    dataset = str(live.FOLDER / "pairs.parquet") if dataset == "scenes" or not names else dataset
    source, about = photos.open_source(dataset, image, columns), photos.state(dataset)
    checkpoints = [load(name) for name in names] or of_here()
    weights = [[x for n, x in one.clip.named_parameters() if n != "logit_bias"] for one in checkpoints]
    if len(names) == 2 and all(torch.equal(a, b) for a, b in zip(*weights, strict=False)):
        raise DataError(f"{' and '.join(names)} are the same model: nothing can be compared")
    marks = marks or [""] * len(names) or ["seen_f", "seen_g"]
    known = {f"seen_{m}": membership(one, source) for m, one in zip("fg", marks, strict=False)}
    if "corruption" in source.columns:
        known["corruption"] = pd.Series(photos.column(source, "corruption"))
    fingerprint = hashlib.sha256(json.dumps([about, source.images, source.captions]).encode()).hexdigest()
    return Pairs(source, fingerprint, pd.DataFrame(known)), checkpoints


def membership(entry: str, source: photos.Source) -> pd.Series:
    """Return which rows one model saw: by a boolean column, or a file of row numbers; "": unknown. Raise DataError."""
    if entry in ("", *source.columns):
        marks = [MARKS.get(str(mark).lower(), mark) for mark in photos.column(source, entry)] if entry else []
        marks = [None if mark != mark else mark for mark in marks]  # NaN
        if wrong := [row for row, mark in enumerate(marks) if mark not in (None, False, True)]:
            said = f"column '{entry}', row {wrong[0]}: expected true, false or nothing"
            raise DataError(f"{said}, got {photos.printable(repr(marks[wrong[0]]), 80)}")
        return pd.Series(marks, dtype=float)
    if not Path(entry).is_file():
        raise DataError(f"seen: '{entry}' is no column of {source.where}, and no file")
    try:
        lines = pd.Series(Path(entry).read_text(encoding="utf-8-sig").rstrip().split("\n")).str.strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{entry} is no text in UTF-8") from error
    rows = pd.Series(range(sum(len(batch) for _, batch in source.read([source.captions[0][0]])))).astype(str)
    for line, text in lines[~lines.isin(rows) | lines.duplicated()].items():
        said = f"{entry}, line {line + 1}: expected a row, 0 to {len(rows) - 1}, each once; got {text!r:.40}"
        raise DataError(said + " again: a list of 0 and 1 is a mask: store it as a column" * (text in rows.values))
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
        tally.check(pairs.source, ended=True)
        store.write_table(folder / "table.parquet", pd.concat(made))

    key = hashlib.sha256(f"{recipes.VERSION} {pairs.fingerprint} {checkpoint.digest}".encode()).hexdigest()[:16]
    folder = store.get_or_build("embedding", key, build, {"checkpoint": checkpoint.name, "pairs": pairs.source.where})
    return pd.read_parquet(folder / "table.parquet")


def score(pairs: Pairs, checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """Return a row per usable pair: pair_id, caption, `known`, and of each model contrast_f (`scores.align`),
    similarity_f, loss_f, augmentation_f, lemon_f (and _g); of two models clipmem: f - g, or g - f where g alone saw the
    pair. Held-out are pairs that no model saw, LEMoN's neighbours pairs that the model saw; where too few are known to
    be so, random ones, without the scored one. Raise DataError for too few pairs."""
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
            found = {"contrast": scores.align(views[None, rows], text[rows], *of_held)}
            found["loss"] = scores.pair_loss(image[rows], text[rows], *of_held, scale)
            found["lemon"] = scores.lemon(image[rows], text[rows], *of_known, scores.NEIGHBOURS)
            table.loc[rows, [f"{name}_{m}" for name in found]] = torch.stack([*found.values()], dim=1).numpy()
    if len(checkpoints) == 2:
        sign = np.where((table["seen_g"] == 1) & (table["seen_f"] == 0), -1, 1)
        table["clipmem"] = sign * (table["contrast_f"] - table["contrast_g"])
    return table.astype({name: "boolean" for name in table if name.startswith("seen_")})
