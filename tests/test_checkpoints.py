"""Models of a reader's own: loaded or refused, embedded in parts, scored, with known and with unknown membership."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from photo_sets import caption, columns, write_parquet

from lib import checkpoints, embeddings, export, runs, scores, stats
from lib.captions import DataError
from lib.checkpoints import CheckpointError, load, open_source
from lib.data import prepare
from lib.decode import square
from lib.model import embed_images, embed_texts
from lib.recipes import f_and_g

HALVES = ["seen_f", "seen_g"]


@pytest.fixture
def recipes(trained):
    """Return f and g of the tiny world, long enough trained to memorize."""
    return f_and_g(replace(trained, epochs=40, batch=20, evaluations=1), 0)


@pytest.fixture
def exported(recipes, tmp_path):
    """Return the folders of f and g as open_clip reads them."""
    for name, recipe in zip("fg", recipes, strict=True):
        checkpoints.export(recipe, tmp_path / name)
    return [tmp_path / name for name in "fg"]


@pytest.fixture
def pairs(recipes, tmp_path):
    export.export_pairs(recipes[0], tmp_path)
    return str(tmp_path / "pairs.parquet")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 50)
    monkeypatch.setattr(embeddings, "STEP", 20)


def test_an_exported_run_embeds_in_open_clip_as_in_lib(recipes, exported, pairs):
    checkpoint, prepared, model = load(f"local-dir:{exported[0]}"), prepare(recipes[0].data), runs.load(recipes[0])
    rows = list(open_source(pairs, "", (), ()).read(checkpoint.preprocess))
    chosen = prepared.table.index[prepared.table["subset"].isin(["pool", "external"])].to_numpy()
    with torch.no_grad():
        found = embeddings.vectors(checkpoint, rows)
    torch.testing.assert_close(found["image"], embed_images(model, prepared.images, chosen)[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found["text"], embed_texts(model, prepared.tokens[chosen, 0]), atol=2e-5, rtol=1e-4)
    assert checkpoint.digest == load(f"local-dir:{exported[0]}").digest != load(f"local-dir:{exported[1]}").digest


class Code:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_what_cannot_be_used_is_refused_by_name(exported, tmp_path):
    folder, weights = exported[0], exported[0] / "open_clip_model.safetensors"
    right = json.loads((folder / "open_clip_config.json").read_text())

    def refusal(name=f"local-dir:{folder}", part="text_cfg", **changes):
        config = json.loads(json.dumps(right))
        config["model_cfg"][part] |= changes
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as error:
            load(name)
        assert name in str(error.value) and len(str(error.value)) < 1500
        return str(error.value)

    assert 'Missing key(s) in state_dict: "visual.transformer.resblocks.2' in refusal(part="vision_cfg", layers=3)
    assert "Unexpected key(s)" in refusal(layers=1) and "width changed" in refusal(width=32)
    assert "size mismatch for visual.conv1.weight" in refusal(part="vision_cfg", patch_size=4, image_size=16)
    assert "foreign code" in refusal(tokenizer_kwargs={"trust_remote_code": True})
    assert "Did you mean 'ViT-B-32'" in refusal("ViT-B-3:openai") and "gone" in refusal(f"local-dir:{tmp_path}/gone")
    assert "nothing.pt" in refusal(f"ViT-B-32:{tmp_path}/nothing.pt")
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "header" in refusal() or "incomplete" in refusal()
    weights.unlink()
    torch.save({"state_dict": Code(tmp_path / "owned")}, folder / "open_clip_pytorch_model.bin")
    assert "eights" in refusal() and not (tmp_path / "owned").exists()


def test_positions_that_open_clip_would_stretch_are_refused(exported, tmp_path, monkeypatch):
    import open_clip

    config = json.loads((exported[0] / "open_clip_config.json").read_text())["model_cfg"]
    config["vision_cfg"]["image_size"] = 64
    (tmp_path / "tiny-64.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-64": config})
    with pytest.raises(CheckpointError, match=r"visual.positional_embedding: \(17, 64\) in the file, \(65, 64\)"):
        load(f"tiny-64:{exported[0] / 'open_clip_model.safetensors'}")


def naive(source, models):
    """Return the scores of all pairs at once, in plain lines."""
    rows, found = None, {}
    for name, checkpoint, seen in zip("fg", models, source.seen, strict=False):
        rows = list(source.read(checkpoint.preprocess))
        cuts = [0, 20, 40, 50, 70, 90, 100, 120]  # where a part ends, a batch does, too: it draws the crops
        batches = [rows[start:stop] for start, stop in pairwise(cuts)]
        made = [embeddings.vectors(checkpoint, batch) for batch in batches]
        image, views, text = (torch.cat([one[key] for one in made]) for key in ("image", "views", "text"))
        unseen = np.flatnonzero(np.all([marks == 0 for marks in source.seen], axis=0))
        known, every = np.flatnonzero(seen == 1), np.arange(len(rows))
        held = unseen if len(unseen) else every
        known = known if len(known) else every
        places = [[list(some).index(i) if i in some else -1 for i in every] for some in (held, known)]
        own, own_known = map(torch.tensor, places)
        found[name] = scores.align(views[None], text, image[held], text[held], own)
        scale = float(checkpoint.model.logit_scale.detach().exp())
        found[f"loss_{name}"] = scores.pair_loss(image, text, image[held], text[held], own, scale)
        found[f"lemon_{name}"] = scores.lemon(image, text, image[known], text[known], own_known, 30)
    found["clipmem"] = found["f"].contrast - found["g"].contrast
    return found


@pytest.mark.parametrize("known", [True, False])
def test_scores_in_parts_are_those_of_all_pairs_at_once(exported, pairs, small_parts, tmp_path, known):
    models = [load(f"local-dir:{folder}") for folder in exported]
    source = open_source(pairs, "", (), HALVES if known else ["", ""])
    table = embeddings.score(source, models, tmp_path / "scores.parquet")
    plain = naive(source, models)
    turned = -1 if known else 1
    plain["clipmem"] = torch.where(torch.from_numpy(source.seen[1] == 1), turned, 1) * plain["clipmem"]
    for name in ("clipmem", "loss_f", "loss_g", "lemon_f", "lemon_g"):
        np.testing.assert_allclose(table[name], plain[name], atol=1e-5)
    assert table["pair_id"].tolist() == list(range(120)) and table["seen_f"].isna().all() != known
    written = pd.read_parquet(tmp_path / "scores.parquet")
    assert written["caption"].tolist() == pd.read_parquet(pairs)["caption"].tolist() and "caption" not in table
    one = embeddings.score(replace(source, seen=source.seen[:1]), models[:1], tmp_path / "one.parquet")
    assert "clipmem" not in one and "lemon_g" not in one and len(one) == 120


def test_a_stopped_embedding_continues_with_the_first_missing_part(exported, pairs, small_parts, monkeypatch):
    checkpoint, source, calls, usual = load(f"local-dir:{exported[0]}"), open_source(pairs, "", (), [""]), [], None

    def counted(checkpoint, batch):
        calls.append(batch[0].number)
        if limit and len(calls) == limit:
            raise KeyboardInterrupt
        return usual(checkpoint, batch)

    usual, limit = embeddings.vectors, 5
    monkeypatch.setattr(embeddings, "vectors", counted)
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed(source, checkpoint)
    assert calls == [0, 20, 40, 50, 70]
    limit = 0
    parts = embeddings.embed(source, checkpoint)
    assert calls[5:] == [50, 70, 90, 100] and len(parts) == 3
    assert embeddings.embed(source, checkpoint) == parts and len(calls) == 9
    numbers = [pd.read_parquet(part / "table.parquet")["pair_id"].tolist() for part in parts]
    assert numbers == [list(range(50)), list(range(50, 100)), list(range(100, 120))]


def test_known_membership_finds_planted_memorization(exported, pairs, tmp_path):
    models = [load(f"local-dir:{folder}") for folder in exported]
    table = embeddings.score(open_source(pairs, "", (), HALVES), models, tmp_path / "scores.parquet")
    one, none = table["seen_f"] ^ table["seen_g"], ~table["seen_f"] & ~table["seen_g"]
    assert one.sum() == 80 and none.sum() == 40
    auc = stats.roc_auc(table["clipmem"].to_numpy(), one.to_numpy(bool), np.ones((1, len(table))))[0]
    assert auc > 0.75, "pairs that one model was trained on stand out of the noise floor"


def test_own_columns_and_lists_say_what_was_seen(tmp_path):
    made = columns(30)
    table = {"photo": made["image"], "text": [caption(i) for i in range(30)], "mine": [True, None, False] * 10}
    path = write_parquet(tmp_path / "mine.parquet", table | {"odd": [3] * 30})
    (tmp_path / "ids.txt").write_text("0\n7\n29\n")
    source = open_source(path, "photo", ["text"], ["mine", str(tmp_path / "ids.txt"), ""])
    column, listed, unknown = source.seen
    assert source.count == 30 and column[::3].all() and np.isnan(column[1]) and column[2] == 0
    assert np.flatnonzero(listed).tolist() == [0, 7, 29] and np.isnan(unknown).all()
    rows = list(source.read(partial(square, pixels=8), first=10, only={11, 12, 29}))
    assert [row.number for row in rows] == [11, 12, 29] and rows[0].captions == [caption(11)]
    assert rows[0].image.shape == (3, 8, 8)
    (tmp_path / "wrong.txt").write_text("0\n30\n")
    for seen, message in {
        "odd": "column 'odd', row 0: expected true, false or nothing, got 3",
        "nowhere": "seen: 'nowhere' is no column of .*mine.parquet, and no text file",
        str(tmp_path / "wrong.txt"): "wrong.txt, line 2: expected the number of a row, 0 to 29, got '30'",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(path, "photo", ["text"], [seen])


def test_a_broken_row_is_left_out_of_the_table(exported, tmp_path, small_parts):
    made = columns(120)
    made["image"][60] = {"bytes": b"no picture", "path": None}
    source = open_source(write_parquet(tmp_path / "mine.parquet", made), "", (), [""])
    with pytest.warns(UserWarning, match="1 of 120 rows cannot be used: row 60"):
        table = embeddings.score(source, [load(f"local-dir:{exported[0]}")], tmp_path / "scores.parquet")
    assert table["pair_id"].tolist() == [i for i in range(120) if i != 60]


def test_options_that_cannot_be_meant_are_refused(tmp_path):
    for models, seen in (("a,b,c", ""), ("a", "x,y"), ("", "x")):
        with pytest.raises(CheckpointError, match="expected one or two"):
            embeddings.begin("05_your_own_models", "smoke", "scenes", "", "", models, seen, False)
