"""Captioned pictures in every usual layout: what is read stays right, what is broken is counted, skipped or refused."""

import io
import json
import tarfile
from base64 import b64encode
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
TWO, NOUNS = [[f"a {x}", f"one {x}"] for x in ("cat", "dog", "cow")], ("dog", "cat", "boat", "tree", "house", "cloud")


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
    structs = [[{"raw": text, "tokens": text.split()} for text in own] for own in TWO]
    listed = [json.dumps(own) for own in TWO]
    for layout, named in (
        ({"mask": columns(6)["image"][3:], "captions": TWO}, ()),
        ({"caption": [[own[0], " ", None, f"{own[1]} "] for own in TWO], "text": TWO[::-1]}, ()),
        ({"caption_10": [own[1] for own in TWO], "caption_2": [own[0] for own in TWO], "title": ["x"] * 3}, ()),
        ({"Text": TWO, "sentences": structs}, ()),  # the usual column that holds text
        ({"ALT_TEXT": listed}, ()),  # JSON, then as Python and NumPy print lists, then one caption per line
        ({"prompt": [str(own) for own in TWO]}, ()),
        ({"txt": [str(np.array(own)) for own in TWO]}, ()),
        ({"caption": ["\r\n".join(own) for own in TWO]}, ()),
        ({"txt": [repr(np.array(own, dtype=object)) for own in TWO]}, ()),
        ({"txt": [str([*map(np.str_, own)]) for own in TWO]}, ()),
        ({"txt": [str([[text.encode() for text in own]]) for own in TWO]}, ()),
        ({"sentences": structs}, ("sentences.raw",)),
        ({"sentences": [str(own) for own in structs]}, ("sentences.raw",)),
        ({"meta": [json.dumps({"all": {"en": own}}) for own in TWO]}, ("meta.all.en",)),
    ):
        path = write_parquet(tmp_path / "set[1].parquet", layout | columns(3, **layout))
        pairs = small(path, caption_columns=named)
        assert pairs.captions == TWO and pairs.class_names == () and np.array_equal(pairs.images[1], shown(picture(1)))
    for image in ([[one] for one in columns(3)["image"]], [picture(i) for i in range(3)]):
        pairs = small(write_parquet(tmp_path / "set.parquet", {"IMG": image, "caption": TWO}))
        assert pairs.captions == TWO and np.array_equal(pairs.images[2], shown(picture(2)))


def test_a_caption_in_brackets_or_with_a_broken_sign_stays_one_caption(tmp_path):
    poems = ['("Roses are red,\nviolets are blue")', "[sic] a dog", "[" + "\n ".join(["'x'"] * 3000), "(a cat)"]
    poems.append("['C:\\Users', 'b'")
    half = [f"half an emoji {chr(0xD83D)} {i}" for i in range(5)]  # as JSON may hold it
    for texts, found in ((poems, poems), (half, [text.replace(chr(0xD83D), "?") for text in half])):
        lists = [json.dumps({"image": f"{i}.png", "caption": text}) for i, text in enumerate(texts)]
        (tmp_path / "set.jsonl").write_text("\n".join(lists))
        for i in range(5):
            (tmp_path / f"{i}.png").write_bytes(picture(i))
        assert [own[0] for own in small(tmp_path / "set.jsonl").captions] == found
    for cells in ([{"en": "a"}] * 5, ["{'en': 'a'}"] * 5):
        with pytest.raises(DataError, match=r"Name a part of it, such as caption\.en"):
            small(write_parquet(tmp_path / "set.parquet", columns(5, caption=cells)))


def test_columns_with_other_names_are_refused_until_they_are_named(tmp_path):
    table = {"photo": columns(3)["image"], "sentences": TWO, "label": TWO, "scene": [1, 2, 3]}
    path = write_parquet(tmp_path / "own.parquet", table | {"mask": table["photo"], "raw": [{"a": "b", "c": 1}] * 3})
    missing = {("",): "no image column.*photo, sentences", ("photo", ("no",)): "column 'no'"}
    missing |= {("photo", ("scene",)): "expected text", ("photo", ("raw",)): "Name a part of it, such as raw.a"}
    for named, message in missing.items():
        with pytest.raises(DataError, match=message):
            photos.open_source(path, *named)
    pairs = small(path, image_column="photo", caption_columns=("sentences", "label"))
    assert pairs.captions == TWO and pairs.class_names == ()  # a column of captions is no label
    assert small(write_parquet(tmp_path / "own.parquet", table)).captions == TWO  # the only pictures there are


def test_rows_with_the_same_picture_become_one_pair_with_all_captions(tmp_path):
    table = columns(60, caption=[[caption(i)] for i in range(60)])
    table["image"] = [table["image"][i // 20 if i < 40 else 39 + i // 5] for i in range(60)]
    table["caption"][41] = [caption(41), "another"]  # one row with a list changes nothing for the others
    pairs = small(write_parquet(tmp_path / "set.parquet", table))
    assert pairs.captions[0] == [caption(i) for i in range(10)]  # of 20, so that none widens the tokens of all
    assert sorted(pairs.captions[2]) == sorted([*map(caption, range(40, 45)), "another"]) and pairs.ids.shape[1] == 10
    assert [*pairs.table["pair_id"]] == [0, 20, 40, 45, 50, 55] and np.array_equal(pairs.images[2], shown(picture(47)))
    assert "5 to 10 captions each" in pairs.said and "merged with it: 54" in pairs.said
    assert "captions beyond 10 of a picture, left out: 20" in pairs.said


def test_what_models_read_of_the_captions_is_said_and_the_same_for_all_is_refused(tmp_path):
    same = [f"{'in this picture we can see ' * 5} {i}" for i in range(40)]
    with pytest.raises(DataError, match="models read 24 tokens of a caption, and see only 1 different"):
        small(write_parquet(tmp_path / "set.parquet", columns(40, caption=same)))
    half = [same[i] if i % 2 else caption(i) for i in range(40)]
    pairs = small(write_parquet(tmp_path / "set.parquet", columns(40, caption=half)))
    assert f"40 pictures, 1 caption each, the first: '{caption(0)}'; 50 % of the captions are longer" in pairs.said
    assert "50 % have the same tokens as another" in pairs.said
    assert np.array_equal(pairs.ids, encode(pairs.captions, 1, 24))


def test_the_same_picture_encoded_twice_is_counted_and_different_pictures_are_not(tmp_path):
    grid, table = np.mgrid[0:32, 0:32] / 32, {"image": [], "caption": [caption(i) for i in range(50)]}
    for seed in range(30):
        waves = np.random.default_rng(seed).uniform(-6, 6, (3, 3))
        pixels = 127 + 120 * np.sin(np.einsum("cd,dxy->cxy", waves[:, :2], grid) + waves[:, 2, None, None])
        image = Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0))
        for quality in (95, 30)[: 1 + (seed < 20)]:
            image.save(file := io.BytesIO(), "JPEG", quality=quality)
            table["image"].append(file.getvalue())
    assert "encoded twice?): 40" in small(write_parquet(tmp_path / "set.parquet", table)).said


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
    with pytest.warns(UserWarning, match=r"set\.parquet: 3 of 300 .*row 17: .*; row 18: .*; row 40: without a caption"):
        pairs = small(path)
    assert pairs.table["pair_id"].tolist() == [i for i in range(300) if i not in (17, 18, 40)]
    assert pairs.captions[38] == [caption(41), caption(41, 1)] and len(pairs.images) == len(pairs.ids) == 297
    assert "3 of 300 rows skipped (2 damaged, 1 without a caption)" in pairs.said
    table["captions"][41:180], table["image"][180:187] = [[]] * 139, [None] * 7  # img2dataset leaves rows like these
    with pytest.warns(UserWarning, match="149 of 300"):
        assert "2 damaged, 140 without a caption, 7 without a picture" in small(write_parquet(path, table)).said
    table["image"][187:189] = [None, None]
    with pytest.raises(DataError, match="151 of 256"):
        small(write_parquet(path, table))


def test_too_many_damaged_rows_are_refused_as_soon_as_that_is_certain(tmp_path, monkeypatch):
    table, read = columns(1000), []
    for i in range(100):
        table["image"][i]["bytes"] = b"<html>"
    monkeypatch.setattr(photos, "square", lambda image, pixels: read.append(1) or np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"100 of 256 rows skipped .* an HTML page"):
        small(write_parquet(tmp_path / "set.parquet", table))
    assert len(read) == 156


def test_too_few_pictures_damaged_files_and_unknown_names_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "set.parquet"
    few, whole = config(path), path.read_bytes()
    with pytest.warns(UserWarning, match="smaller than asked for"):
        assert list(prepare(replace(few, shared=100)).config.sizes().values()) == [78, 93, 23, 15, 7]
    with pytest.raises(DataError, match="219 distinct images are too few"):
        prepare(replace(few, shared=400))
    zeros, pointer = whole[:3000] + bytes(50_000) + whole[53_000:], b"version https://git-lfs.github.com/spec/v1"
    for content in (whole[:50_000], b"", zeros, pointer):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"set\.parquet(: cannot be|: reading stopped| is empty| is a Git LFS)"):
            small(path)
    (empty := tmp_path / "empty").mkdir()
    (empty / "metadata.py").touch()  # lists no pictures
    for name in ("flickr8", str(tmp_path / "photo.parquet"), str(empty), ""):
        if not name:  # is not the folder that one is in
            (empty / "metadata.csv").touch()
            monkeypatch.chdir(empty)
        with pytest.raises(DataError, match=r"not found|folder"):
            photos.locate(name)


def test_a_data_set_is_read_again_only_when_a_file_changes(tmp_path, monkeypatch):
    for seed in (1, 9):
        rows = columns(3, caption=[*"abc"]) | {"image": [picture(seed + i) for i in range(3)]}
        path = write_parquet(tmp_path / "set.parquet", rows)
        assert np.array_equal(small(path).images[0], shown(picture(seed)))
    monkeypatch.setattr(photos, "open_source", None)
    assert np.array_equal(small(path).images[0], shown(picture(9)))


def test_a_picture_that_a_file_names_is_read_again_when_it_changes_whatever_the_type_of_text(tmp_path):
    (tmp_path / "a").mkdir()
    rows = {"image": [f"a/{i}.png" for i in range(3)], "caption": ["x", "y", "z"]}
    stored = {"image": [{"bytes": None, "path": path} for path in rows["image"]], "caption": rows["caption"]}
    as_pandas = pd.DataFrame(rows)  # of type large_string
    for write in (
        lambda: as_pandas.to_parquet(tmp_path / "set.parquet"),
        lambda: as_pandas.astype("category").to_parquet(tmp_path / "set.parquet"),
        lambda: write_parquet(tmp_path / "set.parquet", stored),
        lambda: as_pandas.to_json(tmp_path / "set.jsonl", orient="records", lines=True),
        lambda: as_pandas.map(lambda text: text.replace("/", "\\")).to_csv(tmp_path / "set.csv"),
    ):
        write()
        path = max((one for one in tmp_path.glob("set.*")), key=lambda one: one.stat().st_mtime_ns)
        for first in (0, 10):
            for i in range(3):
                (tmp_path / "a" / f"{i}.png").write_bytes(picture(first + i))
            assert np.array_equal(small(path).images[2], shown(picture(first + 2))), path
        path.unlink()


def test_a_folder_of_images_has_a_list_of_them_in_any_usual_form_and_a_bad_one_is_named(tmp_path):
    folder = tmp_path / "my [1] ü" / "test"  # no split, whatever it is called
    folder.mkdir(parents=True)
    for i in range(4):  # the last one is not listed, so it is left out
        (folder / f"{i}.png").write_bytes(picture(i))
    lines = ["file_name,caption", "test/0.png,None", "test/1.png,1999", 'test/2.png,"a café, at ""noon"""']
    plain, lists = "\n".join(lines) + "\n", folder.parent / "metadata.csv"
    found = [["None"], ["1999"], ['a café, at "noon"']]
    (folder.parent / "metadata.json").write_text("{}")  # lists nothing
    spaced = plain.replace(",None", " , None ,,").replace("caption", "caption,,")
    excel = "sep=;\n" + plain.replace(",", ";", 3).replace(",1999", ";1999").replace("test/2.png,", "test/2.png;")
    (folder.parent / ".ipynb_checkpoints").mkdir()
    (folder.parent / ".ipynb_checkpoints" / "metadata.csv").write_text(plain.replace("None", "old"))
    encoded = [plain.encode(code) for code in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le")]
    for content in (*encoded, spaced.encode(), excel.encode()):
        lists.write_bytes(content)
        assert small(folder.parent).captions == found
    for separator in ";|\t":
        lists.write_text("\r\n".join([one.replace(",", separator, 1) for one in lines]))
        assert small(folder.parent).captions == found
    for content, message in {
        plain.encode("cp1252"): "metadata.csv is not in UTF-8: .* 'CSV UTF-8'",
        f"{plain}test/3.png,a dog, a cat\n".encode(): "line 5: more cells than columns. .*needs quotes",
        f'{plain}test/3.png,"a dog\n'.encode(): "line 5: unexpected end",
        b"file_name,caption,caption\ntest/0.png,a,b\n": "two columns 'caption'",
    }.items():
        lists.write_bytes(content)
        with pytest.raises(DataError, match=message):
            small(folder.parent)
    lists.unlink()
    records = [{"file_name": f"{i}.png", "caption": TWO[i]} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert small(folder.parent).captions == TWO
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"file')
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2: "):
        small(folder.parent)


def test_a_folder_of_several_parquet_files_is_read_in_the_order_of_the_splits(tmp_path):
    (tmp_path / "data").mkdir()
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-0", "test-0")):
        table = {name: cells[i : i + 1] for name, cells in columns(4, caption=[caption(k) for k in range(4)]).items()}
        write_parquet(tmp_path / "data" / f"{name}.PARQUET", table)
    assert small(tmp_path).captions == [[caption(i)] for i in range(4)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link").symlink_to(tmp_path / "data")
    assert len(small(tmp_path / "other").images) == 4


def test_a_cell_or_file_that_is_no_picture_is_named_as_what_it_is_in_few_words(tmp_path):
    secret = "\x1b[31mred\x1b[0m"
    for cell, message in {
        "https://example.org/0.jpg": "is an address: download the pictures first",
        b64encode(picture(0) * 9).decode(): "is base64 text",
        "no/such.png": f"there is no file 'no/such.png' in {tmp_path}",
        b"\0\0\0\x18ftypheic": "HEIC: convert it",
        b"version https://git-lfs.github.com/spec/v1": "Git LFS pointer",
        b"\n<!DOCTYPE html>": "an HTML page",
        b"none" * 999: r"nothing that Pillow knows: b'nonenone",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            small(write_parquet(tmp_path / "set.parquet", {"image": [cell] * 9, "caption": [secret] * 9}))
        assert len(str(error.value)) < 900 and " at 0x" not in str(error.value) and str(error.value).isprintable()
    for cells in ([[[0, 1], [2, 3]]] * 9, [[picture(0), picture(1)]] * 9):
        with pytest.raises(DataError, match="is not the bytes or the path of one picture"):
            small(write_parquet(tmp_path / "set.parquet", {"image": cells, "caption": [secret] * 9}))
    with pytest.raises(DataError) as error:
        small(write_parquet(tmp_path / "set.parquet", {secret: ["x" * 5000] * 9, "caption": [secret] * 9}))
    assert str(error.value).isprintable() and "red" in str(error.value)


def test_deep_transparent_and_turned_pictures_look_as_they_should():
    ramp, exif = np.linspace(0, 1, 64).reshape(8, 8), Image.Exif()
    for top in (4095, 65535):
        assert np.abs(shown(png(Image.fromarray((ramp * top).astype(np.uint16)))) - ramp * 255).max() < 1.01
    Image.fromarray((2 * ramp - 1).astype(np.float32)).save(file := io.BytesIO(), "TIFF")
    assert np.abs(shown(file.getvalue()) - ramp * 255).max() < 1.01
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
    assert np.array_equal(ready.token_ids[ready.tokens], encode(ready.captions, 4, 16)[..., : ready.tokens.shape[2]])
    f, g = (ready.half(name, 3) for name in ("candidate", "independent"))
    assert np.array_equal(np.union1d(f, g), ready.subsets["pool"]) and len(f) == len(g) == 60
    kinds = [table.loc[rows].groupby(["corruption", "share_planned"]).size() for rows in (f, g)]
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
    changes = {}, {"captions": [[*"abc"]] * 220}, {"image": columns(221)["image"][1:]}, {"label": ["x", "z"] * 110}
    prints = [load(config(tmp_path / "moved.parquet", **change)).fingerprint for change in changes]
    assert prints[0] == first.fingerprint and len(set(prints)) == 4


def shard(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_are_read_however_their_files_are_called_and_ordered_and_a_cut_one_is_refused(tmp_path):
    texts, path = [caption(i).encode() for i in range(30)], tmp_path / "0.tar"
    for name, image, text in (("{:04}", "png", "txt"), ("img.{:04}", "png", "txt"), ("a/{:04}", "JPG", "Caption")):
        pairs = [(f"{name.format(i)}.{image}", picture(i), f"{name.format(i)}.{text}", texts[i]) for i in range(30)]
        files = [one for name, content, other, words in pairs for one in ((name, content), (other, words))]
        for order in (files, files[::2] + files[1::2], files[:4] + files[5:6] + files[4:5] + files[6:]):
            shard(path, [("._x.txt", b"\0"), *order])
            assert small(tmp_path).captions == [[caption(i)] for i in range(30)]
    mixed = [(f"{i}.{'jpg' if i % 3 else 'png'}", picture(i)) for i in range(30)]
    mixed += [(f"{i}.json", json.dumps({"caption": caption(i)}).encode("utf-8-sig")) for i in range(30) if i != 7]
    shard(path, mixed)
    with pytest.warns(UserWarning, match="1 of 30 rows skipped"):
        pairs = small(tmp_path, caption_columns=("json.caption",))
    assert len(pairs.images) == 29 and pairs.captions[7] == [caption(8)]
    whole, bad = path.read_bytes(), {b"": "is empty", b"<html>": "HTML", bytes(99): "cannot be", b"\x1f\x8b": "gunzip"}
    with tarfile.open(path) as tar:
        at = tar.getmembers()[9].offset
    broken = whole[:9000], whole[:at] + b"x" * 512 + whole[at + 512 :], whole + whole
    for content, message in (bad | dict.fromkeys(broken, "damaged or cut off after")).items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            small(tmp_path, caption_columns=("json.caption",))


@pytest.mark.filterwarnings("ignore:.* rows skipped")  # one is broken
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
