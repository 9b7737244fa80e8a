"""Every layout that a captioned set may have, every way in which one may be broken, and what is made of it."""

import io
import os
import shutil
import tarfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from photo_sets import caption, columns, picture, write_parquet
from PIL import Image

from lib import decode
from lib.captions import DataError, encode
from lib.data import check, load, prepare
from lib.decode import decode_image, square
from lib.recipes import Data

SIZES = {"shared": 20, "pool": 120, "external": 30, "test": 20, "probe": 10}
TWO = [["a cat", "one cat"]] * 3
LAYOUTS = [{"captions": TWO}, {"sentences_raw": TWO}, {"caption": [["a cat", " ", None, "one cat "]] * 3, "text": TWO}]
DEEP = [(np.uint16, 4095), (np.uint16, 65535), (np.int32, 255), (np.float32, 1), (np.float32, 255)]  # type, largest


def small(path, **named):
    return load(Data(str(path), pixels=8, **named))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """220 pairs in two classes; three images are equal to others, one pair has a single caption."""
    table = columns(220) | {"label": ["x", "y"] * 110}
    for copy, first in ((5, 4), (100, 4), (201, 200)):
        table["image"][copy] = table["image"][first]
    table["captions"][3] = [caption(3)]
    return write_parquet(tmp_path_factory.mktemp("photos") / "photos.parquet", table)


@pytest.mark.parametrize("layout", [*LAYOUTS, {"caption_10": ["one cat"] * 3, "caption_2": ["a cat"] * 3}])
def test_captions_are_found_in_every_usual_layout(tmp_path, layout):
    pairs = small(write_parquet(tmp_path / "set.parquet", columns(3, **layout)))
    assert pairs.captions == TWO and pairs.classes == [[]] * 3 and pairs.images.shape == (3, 3, 8, 8)


def test_unusual_columns_are_refused_by_name_and_taken_when_named(tmp_path):
    cells = columns(3)["image"]
    path = write_parquet(tmp_path / "own.parquet", {"photo": cells, "sentences": TWO, "label": TWO, "scene": [1, 2, 3]})
    for named, said in {
        ("",): r"own\.parquet: no image column\..* photo, sentences, label, scene\..* --image COLUMN .*`image` in a",
        ("photo",): r"no caption column\. .*--captions COLUMN .*`captions` in a notebook",
        ("photo", ("sentense",)): "no caption column 'sentense'",
        ("photo", ("scene",)): r"'scene' holds .*int64.*expected text or lists of text",
    }.items():
        with pytest.raises(DataError, match=said):
            check(path, *named)
    pairs = small(path, image_column="photo", caption_columns=("sentences", "label"))
    assert pairs.captions == [TWO[0] * 2] * 3 and pairs.classes == [[]] * 3  # a column of captions is no label
    assert np.array_equal(pairs.images[1], square(decode_image(picture(1)), 8))


def test_a_mask_is_not_taken_for_the_image(tmp_path):
    path, masks = str(tmp_path / "set.parquet"), {"mask": columns(6)["image"][3:]}
    rows = datasets.Dataset.from_dict(masks | columns(3, caption=[*"abc"])).cast_column("mask", datasets.Image())
    rows.cast_column("image", datasets.Image()).to_parquet(path)
    assert np.array_equal(small(path).images[0], square(decode_image(picture(0)), 8))
    rows.cast_column("image", datasets.Image()).rename_column("image", "photo").to_parquet(path)
    with pytest.raises(DataError, match="no image column"):  # one of the two, who knows
        check(path)


def test_one_row_per_caption_becomes_one_pair_with_all_of_them(tmp_path):
    table = columns(60, caption=[caption(i) for i in range(60)])
    table["image"] = [table["image"][i // 20 if i < 40 else 39 + i // 5] for i in range(60)]
    table["caption"][44] = table["caption"][43]
    pairs = small(write_parquet(tmp_path / "set.parquet", table))
    assert pairs.captions[0] == [caption(i) for i in range(10)]  # of 20, so that none widens the tokens of all
    assert pairs.captions[2] == [caption(i) for i in (40, 41, 42, 43)] and pairs.ids.shape == (6, 10, 24)
    assert pairs.table["pair_id"].tolist() == [0, 20, 40, 45, 50, 55]
    table["caption"] = [[text, "another"] for text in table["caption"]]  # several each: the first row's are kept
    assert small(write_parquet(tmp_path / "set.parquet", table)).captions[2] == [caption(40), "another"]


def test_labels_of_every_kind(tmp_path):
    for values, classes, names in (
        (["dog", "cat", "", None], [[1], [0], [], []], {0: "cat", 1: "dog"}),
        ([True, False, None, True], [[1], [0], [], [1]], {0: "False", 1: "True"}),
        ([1.0, 2.0, float("nan"), 1.0], [[0], [1], [], [0]], {0: "1.0", 1: "2.0"}),
        ([3, -1, 7, None], [[3], [], [7], []], {}),
        (pa.array([1, 2**63, 1, 2**63], pa.uint64()), [[0], [1]] * 2, {0: "1", 1: str(2**63)}),
        ([["b", "a"], [], None, ["a"]], [[1, 0], [], [], [0]], {0: "a", 1: "b"}),
        (columns(4)["image"], [[]] * 4, {}),
    ):
        pairs = small(write_parquet(tmp_path / "set.parquet", columns(4, caption=[*"abcd"], label=values)))
        assert pairs.classes == classes and pairs.class_names == names


def test_classes_become_shares_with_the_names_of_the_source(tmp_path):
    rows = datasets.Dataset.from_dict(columns(200) | {"labels": [[2, 0], [], [0, 0], [2]] * 50})
    kinds = datasets.List(datasets.ClassLabel(names=["cat", "dog", "cow"]))
    rows.cast_column("labels", kinds).to_parquet(tmp_path / "set.parquet")
    ready = prepare(Data(str(tmp_path / "set.parquet"), 8, **SIZES))
    assert ready.class_names == ("cat", "cow") and ready.true_targets.dtype == np.float32
    assert ready.true_targets[:4].tolist() == [[0.5, 0.5], [0, 0], [1, 0], [0, 1]]
    path = write_parquet(tmp_path / "numbered.parquet", columns(200) | {"label": [str(i) for i in range(200)]})
    assert prepare(Data(path, 8, **SIZES)).class_names == ()  # these only number the images


def test_broken_rows_are_named_and_skipped_up_to_one_per_cent(tmp_path):
    table = columns(300)
    table["image"][17]["bytes"] = table["image"][17]["bytes"][:-300]
    table["image"][18]["bytes"] = b"no image"
    table["captions"][40] = ["", " \u200b\u2060\u00ad\x00"]  # nothing of it shows
    table["captions"][41] = ["", r"$\frac{70 costs $5 and $6"]
    named = r"set\.parquet: 3 of 300 .*row 17: .*truncated.*; row 18: .*cannot identify.*; row 40: no caption"
    with pytest.warns(UserWarning, match=named):
        pairs = small(write_parquet(tmp_path / "set.parquet", table))
    assert pairs.table["pair_id"].tolist() == [i for i in range(300) if i not in (17, 18, 40)]
    assert pairs.captions[38] == [r"$\frac{70 costs $5 and $6"] and len(pairs.images) == len(pairs.ids) == 297
    table["captions"][42] = []
    with pytest.raises(DataError, match=r"4 of 300 rows cannot be used: row 17.*At most 1% are skipped"):
        small(write_parquet(tmp_path / "set.parquet", table))


def test_damaged_files_are_refused_by_name_and_nothing_else_is_said(tmp_path, capfd):
    path = Path(write_parquet(tmp_path / "set.parquet", columns(400)))
    whole, none = path.read_bytes(), pa.BufferOutputStream()
    pq.write_table(pa.table(columns(1)).slice(0, 0), none)
    holed = whole[:3000] + bytes(50_000) + whole[53_000:]
    for content in (whole[:50_000], b"hello", b"", holed, none.getvalue()):
        path.write_bytes(content)
        for call in (check, small):
            with pytest.raises(DataError, match=r"set\.parquet: (cannot be read|reading stopped).*[Cc]opy"):
                call(str(path))
    assert "rror" not in "".join(capfd.readouterr())


def test_names_that_lead_nowhere_say_what_is_near(tmp_path):
    write_parquet(tmp_path / "photos.parquet", columns(1))
    for name, said in {
        "flickr8": "'flickr8' not found. Did you mean 'flickr8k'",
        str(tmp_path / "photo.parquet"): r"Did you mean 'photos\.parquet'",
        str(tmp_path): r"expected a \.parquet file, or a folder: of images with metadata\.csv .* of \.tar shards",
        "flickr8k": r"jxie/flickr8k: cannot be read .*network .*downloaded parquet",  # tests are offline
        **dict.fromkeys(["", "x" * 300, "~nobody/x", "a\0b", "x" * 300 + "/y.parquet"], "not found"),
    }.items():
        with pytest.raises(DataError, match=said):
            check(name)


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # the superuser may enter all
    with pytest.raises(DataError, match=f"{tmp_path} may not be read: change its permissions"):
        check(str(tmp_path / "photos.parquet"))


@pytest.mark.parametrize("as_text", [True, False])
def test_pictures_that_a_parquet_file_names_are_read_again_when_they_change(tmp_path, as_text):
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        file.write_bytes(picture(i))
    cells = [str(file) if as_text else {"bytes": None, "path": str(file)} for file in files]
    path = write_parquet(tmp_path / "set.parquet", {"image": cells, "caption": [*"abcd"]})
    first = small(path)
    assert np.array_equal(first.images[1], square(decode_image(picture(1)), 8))
    files[1].write_bytes(picture(9))
    assert np.array_equal(small(path).images[1], square(decode_image(picture(9)), 8))


@pytest.mark.parametrize("name", ["set[1]", "star*", "what?", "my photos ü", "{a}"])
def test_paths_are_read_as_they_are_written(tmp_path, name):
    for other in ("set1", "starry", "what1", name):
        write_parquet(tmp_path / f"{other}.parquet", columns(3, caption=[other, "b", "c"]))
    assert small(tmp_path / f"{name}.parquet").captions == [[name], ["b"], ["c"]]
    folder = tmp_path / name / "test"  # no split, whatever it is called
    folder.mkdir(parents=True)
    for i in range(5):  # the last one is not listed, so it is left out
        (folder / f"{i}.jpg").write_bytes(picture(i, form="JPEG"))
    table = pd.DataFrame({"file_name": [f"test/{i}.jpg" for i in range(4)], "caption": [*"abcd"], "label": [*"xyxy"]})
    table.to_csv(folder.parent / "metadata.csv", index=False)
    assert check(str(folder.parent)) and small(folder.parent).captions == [["a"], ["b"], ["c"], ["d"]]
    (folder / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 4 rows cannot be used: row 3: .*3\.jpg cannot be read"):
        small(folder.parent)


def test_exotic_images_keep_their_brightness(tmp_path):
    def saved(image, form, **how):
        image.save(file := io.BytesIO(), form, **how)
        return square(decode_image({"bytes": file.getvalue(), "path": None}), 8)

    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    for kind, top in DEEP:
        assert np.abs(saved(Image.fromarray((ramp * top).astype(kind)), "TIFF") - ramp * 255).max() < 1.01
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        assert saved(Image.new("RGB", (30, 9), "white").convert(mode), "TIFF" if mode == "CMYK" else "PNG").min() > 250
    clear = Image.new("RGBA", (30, 10))  # with a red centre
    clear.paste((255, 0, 0, 255), (10, 0, 20, 10))
    for image in (clear, clear.quantize(4)):  # RGBA, and a palette with alpha
        assert saved(image, "PNG")[:, 4, 4].tolist() == [255, 0, 0]
        assert saved(image.crop((0, 0, 9, 9)), "PNG").min() == 255
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert saved(red, "GIF", save_all=True, append_images=[blue])[:, 0, 0].tolist() == [255, 0, 0]  # animated
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no image"):
        decode_image(str(tmp_path / "pipe.png"))


def test_too_few_rows_and_captions_that_are_alike_are_refused(tmp_path):
    data = Data(write_parquet(tmp_path / "few.parquet", columns(150)), 8, **SIZES)
    with pytest.warns(UserWarning, match="smaller than asked for"):
        assert list(prepare(data).data.sizes().values()) == [15, 90, 22, 15, 7]
    with pytest.raises(DataError, match=r"150 distinct images are too few.* need 240, or at least 160 when shrunk"):
        prepare(replace(data, shared=60))
    for texts, said in ((["one", "two"] * 150, "fewer than 3 different captions"), ([""] * 300, "no caption that is")):
        with pytest.raises(DataError, match=said):
            check(write_parquet(tmp_path / "alike.parquet", columns(300, caption=texts)))
    texts = [""] * 20 + ["a"] * 270 + [*"bcdefghijk"]  # the first ones may be broken or alike
    assert check(write_parquet(tmp_path / "sorted.parquet", columns(300, caption=texts)))


def test_pairs_are_split_and_corrupted_with_the_truth_kept(photos, prepared):
    ready = prepare(Data(photos, 8, **SIZES, context=16))
    pairs, table, rows = load(ready.data), ready.table, np.concatenate(list(ready.subsets.values()))
    assert len(pairs.images) == 217 and len(set(rows)) == len(table) == 200
    assert all(table.index[table["subset"] == name].tolist() == part.tolist() for name, part in ready.subsets.items())
    counts = table.groupby(["subset", "corruption"]).size().unstack(fill_value=0)
    expected = [[20, 0, 0, 0], [60, 12, 24, 24], [15, 3, 6, 6], [20, 0, 0, 0], [10, 0, 0, 0]]
    assert counts.loc[[*SIZES]].to_numpy().tolist() == expected
    same = np.array([own == before for own, before in zip(ready.captions, pairs.captions, strict=True)])
    assert (table["corruption"].isin(["clean", "inverted"]) == same[table.index]).all()
    swapped = table[table["corruption"] == "swapped"]
    donors = pd.Index(pairs.table["pair_id"]).get_indexer(swapped["donor"])
    assert swapped["caption"].tolist() == [pairs.captions[donor][0] for donor in donors]
    assert np.array_equal(ready.targets[swapped.index], ready.true_targets[donors]) and ready.class_names == ("x", "y")
    assert (table["mislabelled"] == (ready.targets != ready.true_targets)[table.index, 0]).all()
    assert (table["label"] == ready.targets.argmax(axis=1)[table.index]).all() and 0 < table["mislabelled"].sum() <= 30
    inverted = np.isin(np.arange(217), table.index[table["corruption"] == "inverted"])[:, None, None, None]
    assert np.array_equal(ready.images, np.where(inverted, 255 - pairs.images, pairs.images))
    assert np.array_equal(ready.token_ids[ready.tokens], encode(ready.captions, 2, 16)[..., : ready.tokens.shape[2]])
    truth = prepared.table[["rarity", "vagueness"]]  # of scenes
    assert truth.min().min() >= 0 and truth.max().max() <= 1 and table[[*truth]].isna().all(axis=None)


def test_the_halves_of_the_pool_complement_each_other_are_equally_good_and_differ_between_seeds(photos):
    ready = prepare(Data(photos, 8, **SIZES))
    halves = []
    for seed in range(4):
        f, g = (ready.half(name, seed) for name in ("candidate", "independent"))
        assert np.array_equal(np.union1d(f, g), ready.subsets["pool"]) and len(f) == len(g) == 60
        kinds = [ready.table.loc[rows].groupby(["corruption", "share_swapped"]).size() for rows in (f, g)]
        assert kinds[0].sub(kinds[1], fill_value=0).abs().max() <= 1 and len(kinds[0]) == 6
        assert np.array_equal(f, ready.half("candidate", seed)) and (np.diff(f) > 0).all()
        halves.append(f)
    common = [len(np.intersect1d(a, b)) for a, b in combinations(halves, 2)]
    assert min(common) > 15 and max(common) < 45, "by chance 30"


def test_a_data_set_is_prepared_once_and_a_changed_file_after_the_cache_is_cleared(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", columns(200))
    first = prepare(data := Data(path, 8, **SIZES))
    write_parquet(tmp_path / "set.parquet", columns(210))
    assert prepare(data) is first
    prepare.cache_clear()
    assert prepare(data).fingerprint != first.fingerprint


def test_split_and_fingerprint_follow_from_the_content_alone(photos, tmp_path):
    table, data, moved = pq.read_table(photos).to_pydict(), Data(photos, 8, **SIZES), tmp_path / "moved.parquet"
    first, other = prepare(data), prepare(replace(data, seed=1))
    again = prepare(replace(data, dataset=write_parquet(moved, table)))
    assert first.fingerprint == again.fingerprint == other.fingerprint and first.captions == again.captions
    assert all(np.array_equal(first.subsets[name], again.subsets[name]) for name in SIZES)
    assert not np.array_equal(first.subsets["test"], other.subsets["test"])
    gap = {name: [[""] if name == "captions" else values[0], *values] for name, values in table.items()}
    one = {"captions": [["a"], *table["captions"][1:]]}, {"image": [columns(221)["image"][220], *table["image"][1:]]}
    found = [small(write_parquet(moved, table | change)) for change in (*one, {"label": ["x", "z"] * 110})]
    with pytest.warns(UserWarning, match="row 0"):
        found.append(small(write_parquet(moved, gap)))  # every pair id is one higher
    assert len({first.fingerprint, *(pairs.fingerprint for pairs in found)}) == 5


def test_a_second_load_reads_nothing_and_a_changed_file_is_decoded_anew(tmp_path):
    path = Path(write_parquet(tmp_path / "set.parquet", columns(30)))
    first, stat = small(path), path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert np.array_equal(first.images, small(path).images) and first.captions == small(path).captions
    assert len(small(write_parquet(path, columns(31))).images) == 31


def write_shards(folder):
    """Write 240 pairs as WebDataset shards, 60 in each; two pictures are equal to others, one is broken."""
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for i in range(60 * shard, 60 * (shard + 1)):
                image = b"none" if i == 70 else picture({5: 4, 100: 99}.get(i, i))
                for ending, content in {"jpg": image, "txt": caption(i).encode()}.items():
                    entry = tarfile.TarInfo(f"{i:06}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return str(folder)


@pytest.mark.filterwarnings("ignore:.* rows cannot be used")  # one is broken
def test_of_shards_and_of_the_hub_as_many_pictures_are_read_as_are_needed(tmp_path, monkeypatch):
    folder, asked = write_shards(tmp_path / "shards"), []
    pairs = small(folder, **SIZES)
    assert len(pairs.images) == sum(SIZES.values()) == 200
    numbers = [i for i in range(203) if i not in (5, 70, 100)]
    assert pairs.table["pair_id"].tolist() == numbers and pairs.captions[4] == [caption(4), caption(5)]
    usual = datasets.load_dataset

    def hub(name, data_files=None, streaming=False):
        asked.append((name, streaming))
        return usual("webdataset", data_files=f"{folder}/*.tar", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert "pictures in 'jpg', captions in txt" in check("owner/name")
    assert small("owner/name", **SIZES).fingerprint == pairs.fingerprint
    assert asked == [("owner/name", True)] * 2
    monkeypatch.setattr(datasets, "load_dataset", None)  # it is in the store now
    assert small("owner/name", **SIZES).fingerprint == pairs.fingerprint


@pytest.mark.filterwarnings("ignore:.* rows cannot be used")
@pytest.mark.parametrize("damage", ["none", "images.bin", "rows.log"])
def test_an_interrupted_reading_goes_on_where_it_stopped(tmp_path, own_store, monkeypatch, damage):
    folder, left, decoded = write_shards(tmp_path / "shards"), 150, []
    whole = small(folder, **SIZES)
    shutil.rmtree(own_store)
    monkeypatch.setattr(decode, "BATCH", 16)
    usual = decode.decode_image

    def stopped(cell):
        decoded.append(cell)
        if len(decoded) > left:
            raise KeyboardInterrupt
        return usual(cell)

    monkeypatch.setattr(decode, "decode_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        small(folder, **SIZES)
    (entry,) = own_store.glob("data/*/")
    if damage != "none":
        content = bytearray((entry / damage).read_bytes())
        content[len(content) // 2] ^= 1
        (entry / damage).write_bytes(content)
    left = 10**6
    decoded.clear()
    assert small(folder, **SIZES).fingerprint == whole.fingerprint
    assert len(decoded) <= (64 + 16 if damage == "none" else 160)  # of the 203 that are needed
    assert not (entry / "rows.log").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: photographs are not part of the project")
@pytest.mark.parametrize(("name", "captions", "classes"), [("flickr8k", 5, 0), ("coco12k", 1, 12)])
def test_photographs(tmp_path, name, captions, classes):
    some = next(pq.ParquetFile(SHARED / f"{name}.parquet").iter_batches(batch_size=300))
    pq.write_table(pa.Table.from_batches([some]), tmp_path / "some.parquet")
    ready = prepare(Data(str(tmp_path / "some.parquet"), 48, **SIZES))
    assert ready.images.shape == (300, 3, 48, 48) and 20 < ready.images.std() < 120
    assert ready.tokens.shape[1] == captions and len(ready.class_names) >= classes and ready.token_ids[-1] == 49407
