"""What images are called: by labels, by sets of labels, by nouns; and labels made wrong as captions are."""

from pathlib import Path

import numpy as np
import pytest
from photo_sets import caption, columns, write_parquet

from lib.captions import corrupt
from lib.data import DataError, Pairs, load
from lib.labels import NOUNS, planted, targets
from lib.recipes import Data

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pairs_with(captions, labels=None, names=(), sets=None) -> Pairs:
    images = np.zeros((len(captions), 3, 2, 2), np.uint8)
    labels = None if labels is None else np.array(labels)
    return Pairs("few", images, captions, np.arange(len(captions)), labels, names, None, None, "f", sets)


def test_labels_of_the_source_come_first():
    captions = [["a dog"], ["a cat"], ["a man"], ["a bus"]]
    found, names = targets(pairs_with(captions, [2, -1, 0, 2], ("cat", "cow", "dog"), [[5], [6], [7], [8]]), captions)
    assert names == ("cat", "dog") and found.dtype == np.float32  # nothing is a cow
    assert found.tolist() == [[0, 1], [0, 0], [1, 0], [0, 1]]


def test_an_image_with_several_labels_is_all_of_them_in_equal_parts(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", columns(3, caption=["a", "b", "c"], labels=[[7, 3], [], [3, 3]]))
    pairs = load(Data(path, pixels=8), tmp_path / "cache")
    found, names = targets(pairs, pairs.captions)
    assert names == ("class 3", "class 7") and found.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]


def test_nouns_count_as_whole_words_in_any_caption_and_only_when_common():
    captions = [["Two Dogs.", "puppies in the snow"], ["a firefighter", "his catalogue"], ["one woman's dog"]] * 40
    captions[0] = ["a horse"]
    found, names = targets(pairs_with(captions), captions)
    assert names == ("woman", "dog", "snow")  # man is no word of woman, cat none of catalogue; 1 horse in 120 is rare
    assert np.allclose(found[1:4], [[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]) and not found[0].any()


def test_nouns_equal_a_naive_search():
    rng = np.random.default_rng(0)
    words = [word for noun in NOUNS for word in noun]
    captions = [[" ".join(rng.choice(words, 2)), caption(i)] for i in range(300)]
    found, names = targets(pairs_with(captions), captions)
    for row, own in zip(found, captions, strict=True):
        spoken = " ".join(own).split()
        held = {noun[0] for noun in NOUNS if any(word in spoken for word in noun)} & set(names)
        assert {name for name, share in zip(names, row, strict=True) if share} == held
        assert np.allclose(row[row > 0], 1 / max(1, len(held)))


@pytest.mark.parametrize("labels", [None, [1, 1, -1]])
def test_fewer_than_two_classes_are_refused(labels):
    with pytest.raises(DataError, match=r"few: its (nouns|labels).* tell [01] classes .*at least 2"):
        targets(pairs_with([["eins"]] * 3, labels), [["eins"]] * 3)


def test_no_word_belongs_to_two_nouns():
    words = [word for noun in NOUNS for word in noun]
    assert len(words) == len(set(words))


def test_wrong_rows_get_the_classes_of_their_donors():
    captions = [[caption(i)] for i in range(60)]
    made = corrupt(captions, [np.arange(10, 50)], wrong=0.5, dosed=0.25, seed=0)
    right = np.eye(60, dtype=np.float32)
    changed = planted(right, made.donor, made.kind)
    wrong = made.kind == "wrong"
    assert wrong.sum() == 20 and np.array_equal(changed[~wrong], right[~wrong])
    assert changed[wrong].argmax(axis=1).tolist() == made.donor[wrong].tolist()
    assert (right == np.eye(60)).all() and not (changed[wrong] == right[wrong]).all(axis=1).any()
    with pytest.raises(ValueError, match="wrong row 3 has donor -1"):
        planted(right, np.full(60, -1), np.where(np.arange(60) == 3, "wrong", "clean"))


@pytest.mark.parametrize(("name", "source", "least"), [("flickr8k", "dog", 0.9), ("coco12k", "class 1", 1.0)])
def test_photographs_have_classes(tmp_path, name, source, least):
    path = REAL / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent: real photographs are not part of the project")
    pairs = load(Data(str(path), pixels=8), tmp_path)
    found, names = targets(pairs, pairs.captions)
    assert source in names and 15 <= len(names) <= 24 and found.shape == (len(pairs.images), len(names))
    known = found.any(axis=1)
    assert known.mean() >= least and np.allclose(found[known].sum(axis=1), 1)
