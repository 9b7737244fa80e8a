"""Captioned pictures in every usual layout: what is read stays right, what is broken is counted, skipped or refused."""

import io
import tarfile
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib import photos
from lib.captions import encode
from lib.data import class_shares, load, prepare, split
from lib.photos import DataError
from lib.recipes import DataConfig

SIZES = {"shared": 20, "pool": 120, "external": 30, "test": 20, "probe": 10}
TWO, NOUNS = [["a cat", "one cat"]] * 3, ("dog", "cat", "boat", "tree", "house", "cloud")


def caption(i, wording=0):
    return f"{('a photo of a', 'there is one', 'somebody saw a')[wording]} {NOUNS[i % 6]} near number {i}"


def png(image, **how):
    image.save(file := io.BytesIO(), "PNG", **how)
    return file.getvalue()


def picture(seed):
    return png(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)))


def shown(content):
    return photos.square(photos.decode_image(content), 8)


def columns(n, **other):
    """Return columns `image` and, unless others are given, `captions` with two captions each."""
    images = [{"bytes": picture(i), "path": None} for i in range(n)]
    return {"image": images} | (other or {"captions": [[caption(i), caption(i, 1)] for i in range(n)]})


def write_parquet(path, table):
    pd.DataFrame(table, dtype=object).to_parquet(path, index=False)
    return str(path)


def small(path, **named):
    return load(DataConfig(str(path), pixels=8, **named))


def config(path, **change):
    """Write 220 pairs in two classes; one image is equal to another, and one pair has a single caption."""
    table = columns(220) | {"label": ["x", "y"] * 110}
    table["image"][100], table["captions"][3] = table["image"][4], [caption(3)]
    return DataConfig(write_parquet(path, table | change), 8, **SIZES, context=16)


def test_captions_and_images_are_found_in_every_usual_layout(tmp_path):
    for layout in (
        {"mask": columns(6)["image"][3:], "captions": TWO},
        {"caption": [["a cat", " ", None, "one cat "]] * 3, "text": TWO},
        {"caption_10": ["one cat"] * 3, "caption_2": ["a cat"] * 3},
    ):
        pairs = small(write_parquet(tmp_path / "set[1].parquet", layout | columns(3, **layout)))
        assert pairs.captions == TWO and pairs.class_names == () and np.array_equal(pairs.images[1], shown(picture(1)))


def test_columns_with_other_names_are_refused_until_they_are_named(tmp_path):
    table = {"photo": columns(3)["image"], "sentences": TWO, "label": TWO, "scene": [1, 2, 3]}
    path = write_parquet(tmp_path / "own.parquet", table)
    missing = {("",): "no image column.*photo, sentences", ("photo",): "no caption", ("photo", ("no",)): "column 'no'"}
    for named, message in (missing | {("photo", ("scene",)): "expected text"}).items():
        with pytest.raises(DataError, match=message):
            photos.open_source(path, *named)
    pairs = small(path, image_column="photo", caption_columns=("sentences", "label"))
    assert pairs.captions == [TWO[0] * 2] * 3 and pairs.class_names == ()  # a column of captions is no label


def test_rows_with_the_same_picture_become_one_pair_with_all_captions(tmp_path):
    table = columns(60, caption=[caption(i) for i in range(60)])
    table["image"] = [table["image"][i // 20 if i < 40 else 39 + i // 5] for i in range(60)]
    pairs = small(write_parquet(tmp_path / "set.parquet", table))
    assert pairs.captions[0] == [caption(i) for i in range(10)]  # of 20, so that none widens the tokens of all
    assert pairs.captions[2] == [caption(i) for i in range(40, 45)] and pairs.ids.shape == (6, 10, 24)
    assert [*pairs.table["pair_id"]] == [0, 20, 40, 45, 50, 55] and np.array_equal(pairs.images[2], shown(picture(47)))


def test_labels_of_every_type_become_class_shares(tmp_path):
    x, y, both, none = [1, 0], [0, 1], [0.5, 0.5], [0, 0]
    for labels, shares, names in (
        (["dog", "cat", "", None], [y, x, none, none], ("cat", "dog")),
        ([3, -1, 7, None], [x, none, y, none], ("class 3", "class 7")),
        ([["b", "a"], [], None, ["a", "a"]], [both, none, none, x], ("a", "b")),
        ([*"abcd"], [[]] * 4, ()),  # these only number the images
    ):
        found = small(write_parquet(tmp_path / "set.parquet", columns(4, caption=[*"abcd"], label=labels)))
        assert found.shares.tolist() == shares and found.class_names == names
    found, names = class_shares([[2, 0], [], [0, 0], [2]], ["cat", "dog", "cow"])
    assert found.tolist() == [both, none, x, y] and names == ["cat", "cow"]


def test_broken_rows_are_named_and_skipped_up_to_one_per_cent(tmp_path):
    table, path = columns(300), tmp_path / "set.parquet"
    table["image"][17]["bytes"] = table["image"][17]["bytes"][:-300]
    table["image"][18]["bytes"], table["captions"][40] = b"no image", ["", " \u200b\u00ad"]  # nothing of it shows
    datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(path)  # as on the Hub
    with pytest.warns(UserWarning, match=r"set\.parquet: 3 of 300 .*row 17: .*; row 18: .*; row 40: no caption"):
        pairs = small(path)
    assert pairs.table["pair_id"].tolist() == [i for i in range(300) if i not in (17, 18, 40)]
    assert pairs.captions[38] == [caption(41), caption(41, 1)] and len(pairs.images) == len(pairs.ids) == 297
    table["captions"][42] = []
    with pytest.raises(DataError, match=r"4 of 300 rows cannot be used: row 17.*At most 1% are skipped"):
        small(write_parquet(path, table))


def test_too_few_pictures_damaged_files_and_unknown_names_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "set.parquet"
    few, whole = config(path), path.read_bytes()
    with pytest.warns(UserWarning, match="smaller than asked for"):
        assert list(prepare(replace(few, shared=100)).config.sizes().values()) == [78, 93, 23, 15, 7]
    with pytest.raises(DataError, match="219 distinct images are too few"):
        prepare(replace(few, shared=400))
    for content in (whole[:50_000], b"", whole[:3000] + bytes(50_000) + whole[53_000:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"set\.parquet: (cannot be read|reading stopped)"):
            small(path)
    (tmp_path / "metadata.py").touch()  # lists no pictures
    for name in ("flickr8", str(tmp_path / "photo.parquet"), str(tmp_path), ""):
        if not name:  # is not the folder that one is in
            (tmp_path / "metadata.csv").touch()
            monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"not found|folder"):
            photos.locate(name)


def test_a_data_set_is_read_again_only_when_a_file_changes(tmp_path, monkeypatch):
    for seed in (1, 9):
        rows = {"image": [{"bytes": picture(seed), "path": None}], "caption": ["a"]}
        path = write_parquet(tmp_path / "set.parquet", rows)
        assert np.array_equal(small(path).images[0], shown(picture(seed)))
    monkeypatch.setattr(photos, "open_source", None)
    assert np.array_equal(small(path).images[0], shown(picture(9)))


def test_a_folder_of_images_has_a_metadata_file(tmp_path):
    folder = tmp_path / "my [1] ü" / "test"  # no split, whatever it is called
    folder.mkdir(parents=True)
    for i in range(3):  # the last one is not listed, so it is left out
        (folder / f"{i}.png").write_bytes(picture(i))
    (folder.parent / "metadata.csv").write_text("file_name,caption\ntest/0.png,a\ntest/1.png,b\n")
    assert small(folder.parent).captions == [["a"], ["b"]]


def test_deep_transparent_and_turned_pictures_look_as_they_should():
    ramp, exif = np.linspace(0, 1, 64).reshape(8, 8), Image.Exif()
    for top in (4095, 65535):
        assert np.abs(shown(png(Image.fromarray((ramp * top).astype(np.uint16)))) - ramp * 255).max() < 1.01
    clear = Image.new("RGBA", (30, 10))  # with a red centre
    clear.paste((255, 0, 0, 255), (10, 0, 20, 10))
    for image in (clear, clear.quantize(4)):  # RGBA, and a palette with alpha
        assert shown(png(image))[:, 4, 4].tolist() == [255, 0, 0] and shown(png(image.crop((0, 0, 9, 9)))).min() == 255
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    grey = (ramp * 255).astype(np.uint8)
    assert np.array_equal(shown(png(Image.fromarray(grey), exif=exif))[0], np.rot90(grey, -1))


def test_pairs_are_split_and_corrupted_with_the_truth_kept(tmp_path):
    ready, pairs = prepare(config(tmp_path / "set.parquet")), load(config(tmp_path / "set.parquet"))
    table = ready.table
    assert len(pairs.images) == 219 and len(table) == 200 and ready.class_names == ("x", "y")
    assert all(table.index[table["subset"] == name].tolist() == part.tolist() for name, part in ready.subsets.items())
    counts = table.groupby(["subset", "corruption"]).size().unstack(fill_value=0)
    assert counts.loc[["pool", "external"]].to_numpy().tolist() == [[60, 12, 24, 24], [15, 3, 6, 6]]
    same = np.array([own == before for own, before in zip(ready.captions, pairs.captions, strict=True)])
    assert (table["corruption"].isin(["clean", "inverted"]) == same[table.index]).all()
    swapped = table[table["corruption"] == "swapped"]
    donors = pd.Index(pairs.table["pair_id"]).get_indexer(swapped["donor"])
    assert swapped["caption"].tolist() == [pairs.captions[donor][0] for donor in donors]
    assert ready.originals == pairs.captions and np.array_equal(ready.targets[swapped.index], ready.shares[donors])
    assert (table["mislabelled"] == (ready.targets != ready.shares)[table.index, 0]).all()
    assert (table["label"] == ready.targets.argmax(axis=1)[table.index]).all() and 0 < table["mislabelled"].sum() <= 30
    inverted = np.isin(np.arange(219), table.index[table["corruption"] == "inverted"])[:, None, None, None]
    assert np.array_equal(ready.images, np.where(inverted, 255 - pairs.images, pairs.images))
    assert np.array_equal(ready.token_ids[ready.tokens], encode(ready.captions, 2, 16)[..., : ready.tokens.shape[2]])
    f, g = (ready.half(name, 3) for name in ("candidate", "independent"))
    assert np.array_equal(np.union1d(f, g), ready.subsets["pool"]) and len(f) == len(g) == 60
    kinds = [table.loc[rows].groupby(["corruption", "share_swapped"]).size() for rows in (f, g)]
    assert kinds[0].sub(kinds[1], fill_value=0).abs().max() <= 1 and len(kinds[0]) == 6
    assert 15 < len(np.intersect1d(f, ready.half("candidate", 4))) < 45, "by chance 30"


@given(st.tuples(*[st.integers(0, 60)] * 5), st.integers(0, 50), st.integers(0, 2**31))
def test_subsets_are_disjoint_sorted_and_as_large_as_asked_for(sizes, left_over, seed):
    config = DataConfig(**dict(zip(DataConfig().sizes(), sizes, strict=True)), seed=seed)
    parts = split(sum(sizes) + left_over, config)
    assert {name: len(rows) for name, rows in parts.items()} == config.sizes()
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows) and all((np.diff(own) > 0).all() for own in parts.values())


def test_the_fingerprint_follows_from_the_content_and_the_split_from_the_seed(tmp_path):
    first, other = (prepare(replace(config(tmp_path / "set.parquet"), seed=seed)) for seed in (0, 1))
    assert first.fingerprint == other.fingerprint and not np.array_equal(first.subsets["test"], other.subsets["test"])
    changes = {}, {"captions": [["a"]] * 220}, {"image": columns(221)["image"][1:]}, {"label": ["x", "z"] * 110}
    prints = [load(config(tmp_path / "moved.parquet", **change)).fingerprint for change in changes]
    assert prints[0] == first.fingerprint and len(set(prints)) == 4


@pytest.mark.filterwarnings("ignore:.* rows cannot be used")  # one is broken
def test_of_shards_and_of_the_hub_only_as_many_pictures_are_read_as_are_needed(tmp_path, monkeypatch):
    for i in range(240):  # 60 in each shard
        image = b"none" if i == 70 else picture({5: 4, 100: 99}.get(i, i))
        with tarfile.open(tmp_path / f"{i // 60}.tar", "a") as tar:
            for ending, content in {"jpg": image, "txt": caption(i).encode()}.items():
                (tmp_path / ending).write_bytes(content)
                tar.add(tmp_path / ending, f"{i:06}.{ending}")
    pairs = small(tmp_path, **SIZES)
    assert pairs.table["pair_id"].tolist() == [i for i in range(203) if i not in (5, 70, 100)]
    assert pairs.captions[4] == [caption(4), caption(5)] and len(pairs.images) == sum(SIZES.values()) == 200
    on_hub = [photos.open_source(str(tmp_path))]  # to be opened once
    monkeypatch.setattr(photos, "open_source", lambda *named: on_hub.pop())
    assert [small("owner/name", **SIZES).fingerprint for _ in range(2)] == [pairs.fingerprint] * 2
