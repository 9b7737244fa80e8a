"""The cache, the split, and all of it together."""

import errno
import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from photo_sets import caption, columns, picture, write_parquet

import lib.data
import lib.pairs
import lib.sources
from lib.captions import encode
from lib.data import DataError, Pairs, distinct_rows, fit_sizes, load, prepare, split
from lib.recipes import SUBSETS, Data
from lib.scenes import make_scenes

SIZES = {"shared": 40, "candidate": 60, "independent": 60, "external": 20, "disjoint": 20}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    table = columns(220)
    for copy, first in ((5, 4), (100, 4), (201, 200)):
        table["image"][copy] = table["image"][first]
    table["captions"][3] = [caption(3)]
    return write_parquet(tmp_path_factory.mktemp("photos") / "photos.parquet", table)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for every image that is decoded."""
    seen: list[int] = []
    original = lib.sources.decode_image
    monkeypatch.setattr(lib.sources, "decode_image", lambda cell, p: seen.append(p) or original(cell, p))
    return seen


def noise_pairs(n: int) -> Pairs:
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)
    return Pairs("noise", images, [[caption(i)] for i in range(n)], np.arange(n), None, (), None, None, "f")


def test_the_second_load_decodes_nothing(photos, tmp_path, decoded):
    first = load(Data(photos, pixels=8), tmp_path)
    again = load(Data(photos, pixels=8), tmp_path)
    assert len(decoded) == 220
    assert np.array_equal(first.images, again.images) and first.captions == again.captions
    assert first.fingerprint == again.fingerprint
    load(Data(photos, pixels=9), tmp_path)
    assert decoded.count(9) == 220


def test_two_at_once_decode_once(photos, tmp_path, decoded):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load(Data(photos, pixels=8), tmp_path), range(2))
    assert len(decoded) == 220 and first.fingerprint == second.fingerprint


def test_the_fingerprint_is_of_the_content(photos, tmp_path):
    pairs = load(Data(photos, pixels=8), tmp_path / "cache")
    moved = write_parquet(tmp_path / "moved.parquet", lib.pairs.pq.read_table(photos).to_pydict())
    assert load(Data(moved, pixels=8), tmp_path / "other").fingerprint == pairs.fingerprint
    changed = columns(220)
    changed["captions"][9] = ["another"]
    write_parquet(tmp_path / "moved.parquet", changed)
    assert load(Data(moved, pixels=8), tmp_path / "other").fingerprint != pairs.fingerprint


def fingerprint_without_sets(pairs: Pairs) -> str:
    """What a fingerprint was before there were label sets: runs of older data sets are found by it."""
    numbers = [pairs.pair_ids, pairs.labels] if pairs.rarity is None else [pairs.labels, pairs.rarity, pairs.vagueness]
    parts = [json.dumps([pairs.images.shape, pairs.captions]).encode(), pairs.images.tobytes()]
    parts += [b"none" if x is None else f"{x.dtype}{x.shape}".encode() + x.tobytes() for x in numbers]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_sets_of_labels_are_kept_and_count_in_the_fingerprint_only_where_there_are_any(photos, tmp_path):
    scenes, plain = load(Data("scenes", 16, **SIZES), tmp_path), load(Data(photos, pixels=8), tmp_path)
    single = write_parquet(tmp_path / "single.parquet", columns(9, caption=["a"] * 9, label=list(range(9))))
    for pairs in (scenes, plain, load(Data(single, pixels=8), tmp_path)):
        assert pairs.label_sets is None and pairs.fingerprint == fingerprint_without_sets(pairs)
    found = []
    for sets in ([[3, 1], [], None], [[3, 1], [], [2]]):
        path = write_parquet(tmp_path / "several.parquet", columns(3, caption=["a"] * 3, labels=sets))
        first, again = (load(Data(path, pixels=8), tmp_path) for _ in range(2))
        assert first.label_sets == again.label_sets == [one or [] for one in sets] and first.labels is None
        assert first.fingerprint == again.fingerprint != fingerprint_without_sets(first)
        found.append(first.fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("damage", ["images.bin", "table.parquet", "meta.json", "one byte"])
def test_a_damaged_cache_is_decoded_again(photos, tmp_path, decoded, damage):
    pairs = load(Data(photos, pixels=8), tmp_path)
    folder = next(path for path in (tmp_path / "pairs").iterdir() if path.is_dir())
    file = folder / ("images.bin" if damage == "one byte" else damage)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content if damage == "one byte" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match="is damaged"):
        again = load(Data(photos, pixels=8), tmp_path)
    assert len(decoded) == 440 and again.fingerprint == pairs.fingerprint


def test_large_sets_stay_on_disk(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(lib.pairs, "LARGE", 1000)
    pairs = load(Data(photos, pixels=8), tmp_path)
    assert isinstance(pairs.images, np.memmap) and len(distinct_rows(pairs.images)) == 217
    assert not pairs.images.flags.writeable, "Linux counts a writable map as memory, all of it, and may refuse it"


def test_a_full_disk_is_said_before_decoding(photos, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(lib.pairs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"pairs: no room .* 0\.2 MB are needed there and 0\.0 MB are free"):
        load(Data(photos, pixels=8), tmp_path)
    assert not decoded


def test_a_disk_that_fills_up_leaves_nothing_behind(photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lib.pairs.pq, "write_table", fail)
    with pytest.raises(DataError, match="no room for the decoded images"):
        load(Data(photos, pixels=8), tmp_path)
    assert [path.suffix for path in (tmp_path / "pairs").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert len(load(Data(photos, pixels=8), tmp_path).images) == 220


def test_split_is_disjoint_sized_and_decided_by_the_seed():
    pairs, data = noise_pairs(300), Data(**SIZES)
    subsets = split(pairs, data)
    assert {name: len(rows) for name, rows in subsets.items()} == SIZES and tuple(subsets) == SUBSETS
    everything = np.concatenate(list(subsets.values()))
    assert len(set(everything)) == 200 and all((np.diff(rows) > 0).all() for rows in subsets.values())
    renamed = replace(pairs, name="other", captions=[["x"]] * 300, fingerprint="g")
    again = split(renamed, replace(data, wrong=0.5, dataset="other", context=9))
    assert all(np.array_equal(subsets[name], again[name]) for name in subsets)
    other = split(pairs, replace(data, seed=1))
    assert not np.array_equal(subsets["shared"], other["shared"])


def test_identical_images_never_straddle():
    pairs = noise_pairs(300)
    pairs.images[200:] = pairs.images[:100]
    assert distinct_rows(pairs.images).tolist() == list(range(200))
    for seed in range(5):
        rows = np.concatenate(list(split(pairs, Data(**SIZES, seed=seed)).values()))
        assert sorted(rows) == list(range(200))
    with pytest.raises(DataError, match="need 201 distinct images, found 200"):
        split(pairs, Data(**(SIZES | {"disjoint": 21})))


def test_sizes_shrink_in_proportion_but_not_below_forty_candidates():
    data = Data(**SIZES)
    assert fit_sizes(data, 200) is data
    assert fit_sizes(data, 150).sizes() == {
        "shared": 30, "candidate": 45, "independent": 45, "external": 15, "disjoint": 15,
    }  # fmt: skip
    assert fit_sizes(data, 134).candidate == 40
    with pytest.raises(DataError, match=r"133 distinct images are too few. .* need 200, or at least 134"):
        fit_sizes(data, 133)


def test_prepare_from_a_file(photos, tmp_path):
    data = Data(photos, 8, **(SIZES | {"shared": 100}), context=16)
    with pytest.warns(UserWarning, match="smaller than asked for"):
        ready = prepare(data, tmp_path)
    assert sum(ready.data.sizes().values()) <= 217 and ready.fingerprint == ready.pairs.fingerprint
    table = ready.table
    assert table.groupby("subset").size().to_dict() == ready.data.sizes()
    for name, rows in ready.subsets.items():
        assert table.index[table.subset == name].tolist() == rows.tolist()
    planted = table.subset.isin(["candidate", "independent"])
    assert set(table.kind[~planted]) == {"clean"}
    counts = table[planted].groupby(["subset", "kind"]).size().unstack()
    assert (counts.loc["candidate"] == counts.loc["independent"]).all()  # f and g learn from equally good data
    assert table.vagueness.isna().all() and table.rarity.isna().all()
    wrong = table[table.kind == "wrong"]
    assert len(wrong) == 2 * round(0.2 * ready.data.candidate) and (wrong.dose == 1).all()
    assert wrong.caption.tolist() == [ready.pairs.captions[donor][0] for donor in wrong.donor]
    assert ready.class_names == ("dog", "cat", "bike", "tree")
    spoken = ["dog", "cat", "bicycle", "tree"]
    for row in table.itertuples():  # the label goes with the captions: a wrong pair has its donor's
        classes, own = (
            [k for k, word in enumerate(spoken) if word in " ".join(ready.pairs.captions[source])]
            for source in (row.donor if row.kind == "wrong" else row.Index, row.Index)
        )
        assert row.label == (classes[0] if classes else -1) and row.mislabelled == (classes != own)
    assert 0 < table.mislabelled.sum() <= len(wrong)


def test_odd_pairs_are_clean_ones_shown_as_their_negatives(tmp_path):
    ready = prepare(Data("scenes", 16, **SIZES, odd=0.25), tmp_path)
    odd, table = np.flatnonzero(ready.odd), ready.table
    subsets = [ready.subsets[name] for name in ("candidate", "independent")]
    assert [np.isin(odd, rows).sum() for rows in subsets] == [round(0.25 * 60)] * 2 and len(odd) == 30
    assert table.index[table.kind == "odd"].tolist() == odd.tolist()
    assert (table.dose[odd] == 0).all() and (table.donor[odd] == -1).all() and not table.mislabelled[odd].any()
    assert all(ready.captions[row] == ready.pairs.captions[row] for row in odd)
    assert table.kind[table.subset == "candidate"].value_counts().to_dict() == {
        "clean": 21, "odd": 15, "wrong": 12, "dosed": 12,
    }  # fmt: skip
    rows = ready.subsets["candidate"]
    shown, plain = ready.pictures(rows).astype(int), ready.pairs.images[rows].astype(int)
    assert np.array_equal(shown, np.where(ready.odd[rows, None, None, None], 255 - plain, plain))
    without, other = prepare(replace(ready.data, odd=0.0), tmp_path), prepare(replace(ready.data, seed=1), tmp_path)
    assert not without.odd.any() and without.captions == ready.captions
    assert not np.array_equal(other.odd, ready.odd)


def test_tokens_are_those_of_open_clip_in_fewer_numbers(photos, tmp_path):
    ready = prepare(Data(photos, 8, **SIZES, context=16), tmp_path)
    own = [[own[c % len(own)]] for own in ready.captions for c in range(2)]
    whole = encode(own, 1, 16).reshape(220, 2, 16)
    length = ready.tokens.shape[2]
    assert np.array_equal(ready.token_ids[ready.tokens], whole[:, :, :length]) and not whole[:, :, length:].any()
    assert whole[:, :, length - 1].any() and ready.token_ids[0] == 0 and (np.diff(ready.token_ids) > 0).all()
    assert ready.tokens.dtype == np.int32 and (ready.tokens.max(axis=2) == len(ready.token_ids) - 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = prepare(replace(ready.data, seed=5), tmp_path)
    assert np.array_equal(again.token_ids, ready.token_ids)  # one vocabulary, whatever the split


def test_long_captions_are_cut_and_keep_their_end(tmp_path):
    longer = [f"{caption(i)} and {'on ' * i}" for i in range(60)]
    path = write_parquet(tmp_path / "set.parquet", columns(60, caption=longer))
    sizes = {"shared": 4, "candidate": 40, "independent": 10, "external": 3, "disjoint": 3}
    ready = prepare(Data(path, 8, **sizes, context=10), tmp_path)
    assert ready.tokens.shape == (60, 1, 10)
    assert (ready.token_ids[ready.tokens[:, 0, -1]] == 49407).all()


def test_scenes_are_drawn_once_and_again_when_their_code_changes(tmp_path, monkeypatch):
    data, drawn, place = Data("scenes", 16, **SIZES), [], lib.data.locate("scenes")
    monkeypatch.setattr(lib.data, "make_scenes", lambda n, *how: drawn.append(n) or make_scenes(n, *how))
    first, again = load(data, tmp_path), load(data, tmp_path)
    assert drawn == [200] and first.fingerprint == again.fingerprint and first.label_names == again.label_names
    for name in ("images", "labels", "rarity", "vagueness", "pair_ids"):
        ours, kept = getattr(first, name), getattr(again, name)
        assert np.array_equal(ours, kept) and ours.dtype == kept.dtype
    monkeypatch.setattr(lib.data, "locate", lambda _: place._replace(identity="changed"))
    assert load(data, tmp_path).fingerprint == first.fingerprint and drawn == [200, 200]


def test_threads_may_prepare_the_same_set_at_once(photos, tmp_path):
    data = Data(photos, 8, **SIZES, context=16)
    with ThreadPoolExecutor(4) as pool:
        ready = list(pool.map(lambda _: prepare(data, tmp_path), range(4)))
    assert all(np.array_equal(one.tokens, ready[0].tokens) for one in ready)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_scenes_carry_their_truth(tmp_path, monkeypatch):
    def fake(n, pixels, seed):
        images = np.stack([lib.sources.decode_image(picture(i), pixels) for i in range(n)])
        captions = [[caption(i), caption(i, 1)] for i in range(n)]
        rarity = np.linspace(0, 1, n, dtype=np.float32)
        vagueness = np.stack([rarity, 1 - rarity], axis=1)
        return SimpleNamespace(
            images=images, captions=captions, labels=np.arange(n) % 3, label_names=("a", "b", "c"),
            rarity=rarity, vagueness=vagueness,
        )  # fmt: skip

    monkeypatch.setattr(lib.data, "make_scenes", fake)
    ready = prepare(Data("scenes", 8, **SIZES), tmp_path)
    assert len(ready.pairs.images) == len(ready.table) == 200 and ready.data == Data("scenes", 8, **SIZES)
    table = ready.table
    assert np.array_equal(table.rarity, ready.pairs.rarity) and np.array_equal(table.vagueness, ready.pairs.rarity)
    given = np.where(table.kind == "wrong", table.donor, table.index) % 3
    assert (table.label == given).all() and (table.pair_id == table.index).all()
    assert (table.mislabelled == (given != table.index % 3)).all() and table.mislabelled.any()
