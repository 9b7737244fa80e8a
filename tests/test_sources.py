"""Every layout that a captioned set may have, and every way in which one may be broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from photo_sets import caption, columns, picture, write_parquet
from PIL import Image

from lib.data import DataError, check, load
from lib.recipes import Data
from lib.sources import decode_image

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"


def first_captions(path, tmp_path, **named) -> list[str]:
    return load(Data(str(path), pixels=8, **named), tmp_path / "cache").captions[1]


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"captions": [["a cat", "one cat"]] * 3}, {}),
        ({"sentences_raw": [["a cat", "one cat"]] * 3}, {}),
        ({"caption": [["a cat", "one cat"]] * 3}, {}),
        ({"caption_10": ["one cat"] * 3, "caption_2": ["a cat"] * 3}, {}),
        ({"first": ["a cat"] * 3, "second": ["one cat"] * 3}, {"caption_columns": ("first", "second")}),
        ({"caption": ["not this"] * 3, "text": [["a cat", "", "one cat"]] * 3}, {"caption_columns": ("text",)}),
    ],
)
def test_captions_are_found_in_every_layout(tmp_path, layout, named):
    path = write_parquet(tmp_path / "set.parquet", columns(3, **layout))
    assert first_captions(path, tmp_path, **named) == ["a cat", "one cat"]


def test_images_are_found_by_kind_by_name_and_as_told(tmp_path):
    cells = [{"bytes": picture(i), "path": None} for i in range(3)]
    typed = datasets.Dataset.from_dict({"photo": cells, "caption": ["a"] * 3})
    typed.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "typed.parquet")
    plain = write_parquet(tmp_path / "plain.parquet", {"img": [cell["bytes"] for cell in cells], "caption": ["a"] * 3})
    told = write_parquet(tmp_path / "told.parquet", {"x": cells, "caption": ["a"] * 3})
    sets = [(tmp_path / "typed.parquet", {}), (plain, {}), (told, {"image_column": "x"})]
    images = [load(Data(str(path), pixels=8, **named), tmp_path / "cache").images for path, named in sets]
    assert images[0].shape == (3, 3, 8, 8) and images[0].dtype == np.uint8
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    with pytest.raises(DataError, match=r"no image column.*x, caption.*image_column"):
        check(told)


def test_labels_come_along_with_their_names(tmp_path):
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    rows = columns(3, caption=["a"] * 3, label=[1, 0, 1])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set.parquet")
    pairs = load(Data(str(tmp_path / "set.parquet"), pixels=8), tmp_path / "cache")
    assert pairs.labels.tolist() == [1, 0, 1] and pairs.label_names == ("cat", "dog")


def test_sets_of_labels_come_along_with_their_names(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"), labels=datasets.List(kind))
    rows = columns(3, caption=["a"] * 3, labels=[[1, 0], [], [1]])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set.parquet")
    pairs = load(Data(str(tmp_path / "set.parquet"), pixels=8), tmp_path / "cache")
    assert pairs.label_sets == [[1, 0], [], [1]] and pairs.label_names == ("cat", "dog") and pairs.labels is None
    texts = write_parquet(tmp_path / "texts.parquet", columns(3, labels=[["a cat", "one cat"]] * 3))
    pairs = load(Data(texts, pixels=8, caption_columns=("labels",)), tmp_path / "cache")
    assert pairs.captions[1] == ["a cat", "one cat"] and pairs.label_sets is None


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_image_folder_with_metadata_and_splits(tmp_path, kind):
    for part, split in enumerate(("test", "train")):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        names = [f"{i}.jpg" for i in range(2)]
        for i, name in enumerate(names):
            (folder / name).write_bytes(picture(10 * part + i, form="JPEG"))
        texts = [caption(10 * part + i) for i in range(2)]
        table = pd.DataFrame({"file_name": names, "caption": texts, "label": [0, 1]})
        write = {"csv": table.to_csv, "parquet": table.to_parquet}.get(kind)
        if write:
            write(folder / f"metadata.{kind}", index=False)
        else:
            table.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    pairs = load(Data(str(tmp_path / "photos"), pixels=8), tmp_path / "cache")
    assert [own[0] for own in pairs.captions] == [caption(10), caption(11), caption(0), caption(1)]  # train first
    assert pairs.labels.tolist() == [0, 1, 0, 1] and pairs.images.shape == (4, 3, 8, 8)
    assert "4 rows" in check(str(tmp_path / "photos"))


def test_a_hub_set_is_read_in_the_order_train_validation_test_and_found_again_offline(tmp_path, monkeypatch):
    parts = {name: columns(2, caption_0=[f"{name} {i}" for i in range(2)]) for name in ("test", "train", "validation")}
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict(part) for name, part in parts.items()})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **how: asked.append((name, how["revision"])) or splits)
    answer = huggingface_hub.DatasetInfo(id="jxie/flickr8k", sha="abc", tags=[])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, **_: answer)
    data = Data("flickr8k", pixels=8)
    pairs = load(data, tmp_path)
    assert asked == [("jxie/flickr8k", "abc")]
    assert [own[0].split()[0] for own in pairs.captions[::2]] == ["train", "validation", "test"]
    break_network(monkeypatch)
    with pytest.warns(UserWarning, match="hub cannot be reached"):
        assert load(data, tmp_path).fingerprint == pairs.fingerprint
    assert "earlier copy" in check("flickr8k", cache=tmp_path)
    with pytest.raises(DataError, match=r"jxie/flickr8k.*cannot be reached.*parquet"):
        load(Data("flickr8k", pixels=9), tmp_path)


def break_network(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)


def test_offline_mode_ends_soon_with_advice(tmp_path):
    code = (
        "from pathlib import Path; from lib.data import load; from lib.recipes import Data; "
        f"load(Data('flickr8k'), Path({str(tmp_path)!r}))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "DataError: the hub data set 'jxie/flickr8k' cannot be reached" in run.stderr


def test_unknown_names_say_what_is_near(tmp_path):
    with pytest.raises(DataError, match=r"'flickr8' not found. Did you mean flickr8k\?"):
        check("flickr8")
    write_parquet(tmp_path / "photos.parquet", columns(1))
    with pytest.raises(DataError, match=r"Did you mean .*photos\.parquet\?"):
        check(str(tmp_path / "photo.parquet"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt: expected a \.parquet"):
        check(str(tmp_path / "notes.txt"))


def test_what_is_no_caption_is_refused_by_name(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", columns(2, text=["a", "b"], label=[1, 2]))
    with pytest.raises(DataError, match=r"set\.parquet: no caption column.*image, text, label.*caption_columns"):
        load(Data(path), tmp_path)
    with pytest.raises(DataError, match="no caption columns titel"):
        check(path, caption_columns=("titel",))
    with pytest.raises(DataError, match=r"'label' holds .*int64.*expected text"):
        check(path, caption_columns=("label",))


def test_an_image_folder_without_metadata_is_told_what_it_needs(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(picture(0))
    with pytest.raises(DataError, match=r"An image folder needs a metadata\.csv"):
        check(str(tmp_path / "photos"))


def test_a_file_that_is_no_parquet_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "empty").mkdir()
    for name in ("half.parquet", "empty"):
        with pytest.raises(DataError, match=f"{name}: Hugging Face datasets cannot read it"):
            load(Data(str(tmp_path / name)), tmp_path / "cache")


def test_broken_rows_are_named_and_skipped(tmp_path):
    table = columns(300)
    table["image"][17]["bytes"] = table["image"][17]["bytes"][:-300]
    table["image"][18]["bytes"] = b"no image"
    table["captions"][40] = ["", "  "]
    table["captions"][41] = ["", "the only one"]
    path = write_parquet(tmp_path / "set.parquet", table)
    named = r"set\.parquet: 3 of 300 .*row 17: .*truncated.*; row 18: no image .*; row 40: no caption"
    with pytest.warns(UserWarning, match=named):
        pairs = load(Data(path, pixels=8), tmp_path / "cache")
    assert len(pairs.images) == len(pairs.captions) == 297
    assert pairs.pair_ids.tolist() == [i for i in range(300) if i not in (17, 18, 40)]
    assert pairs.captions[38] == ["the only one"]


def test_too_many_broken_rows_stop_the_loading_and_leave_nothing(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.png").write_bytes(picture(i))
    lines = [json.dumps({"file_name": f"{i}.png", "caption": "a"}) for i in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"photos: 1 of 10 rows cannot be used: row 9 \(.*9\.png\).*At most 1%"):
        load(Data(str(folder), pixels=8), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "pairs").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "P", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(picture(0, mode, form=form), 8).shape == (3, 8, 8)


def test_decoding_keeps_the_centre_and_fills_transparency_with_white(tmp_path):
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, 5:25] = (255, 0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.unique(decode_image(str(tmp_path / "wide.png"), 4).reshape(3, -1), axis=1).T.tolist() == [[255, 0, 0]]
    Image.fromarray(wide[:, :5]).save(tmp_path / "clear.png")
    assert decode_image(str(tmp_path / "clear.png"), 4).min() == 255
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(decode_image(str(tmp_path / "deep.png"), 4)).tolist() == [100]


@pytest.mark.parametrize(("name", "rows"), [("flickr8k", "8,091"), ("coco12k", "12,000")])
def test_real_photographs(name, rows, tmp_path):
    path = REAL / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent: real photographs are not part of the project")
    assert rows in check(str(path))
    pq.write_table(pq.read_table(path).slice(0, 300), tmp_path / "some.parquet")
    pairs = load(Data(str(tmp_path / "some.parquet"), pixels=48), tmp_path / "cache")
    assert pairs.images.shape == (300, 3, 48, 48) and 20 < pairs.images.std() < 120
