"""lib/explore.py: which pairs are shown at which place of the slider, and what is written on them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import explore
from lib.data import load

plt.switch_backend("Agg")
KINDS = ["clean"] * 30 + ["swapped"] * 10 + ["inverted"] * 4
SCORES = np.random.default_rng(0).permutation(len(KINDS)) / 10
PAIRS = pd.DataFrame({"pair_id": range(len(KINDS)), "clipmem": SCORES, "error": 0.05, "corruption": KINDS})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("kind", [explore.ALL, "clean", "swapped"])
def test_the_slider_moves_six_neighbours_from_the_least_to_the_most_memorized(kind):
    ordered = sorted(PAIRS.loc[(PAIRS["corruption"] == kind) | (kind == explore.ALL), "clipmem"])
    shown = [explore.around(PAIRS, place, kind)["clipmem"].tolist() for place in range(101)]
    starts = [ordered.index(scores[0]) for scores in shown]
    assert shown == [ordered[start : start + 6] for start in starts], "neighbours, in order"
    assert starts == sorted(starts) and starts[0] == 0 and shown[100] == ordered[-6:]
    assert {score for scores in shown for score in scores} == set(ordered), "of few pairs every one can be reached"


def test_a_percentile_lies_in_the_middle_of_what_is_shown():
    ordered = sorted(SCORES)
    for place in (25, 50, 75):
        middle = explore.around(PAIRS, place, count=2)["clipmem"].mean()
        assert middle == pytest.approx(np.percentile(ordered, place), abs=0.06)


def test_a_rare_kind_is_shown_whole_and_one_that_is_absent_is_empty():
    assert explore.around(PAIRS, 50, "inverted")["pair_id"].sort_values().tolist() == [40, 41, 42, 43]
    absent = explore.around(PAIRS, 50, "partly_swapped")
    assert absent.empty and list(absent) == list(PAIRS)
    alike = explore.around(PAIRS.assign(clipmem=0.0), 0)
    assert alike["pair_id"].tolist() == [0, 1, 2, 3, 4, 5], "ties always come in the same order"


def test_only_a_changed_caption_comes_with_the_right_one(trained, prepared):
    table = prepared.table[prepared.table["subset"] == "pool"]
    pairs = explore.with_captions(table[["pair_id", "corruption"]], prepared)
    shown = pairs["caption"].str.split("\n").str
    assert shown[0].tolist() == table["caption"].tolist() and pairs["row"].tolist() == table.index.tolist()
    changed = shown.len() == 2
    assert set(pairs.loc[changed, "corruption"]) == {"swapped", "partly_swapped"}
    assert not changed[pairs["corruption"].isin(["clean", "inverted"])].any()
    originals = load(prepared.data).captions
    for pair, donor in zip(pairs[changed].itertuples(), table.loc[changed.to_numpy(), "donor"], strict=True):
        trained, right = pair.caption.split("\n")
        assert right == f"(right: {originals[pair.row][0]})"
        assert pair.corruption == "partly_swapped" or trained in originals[donor]


def test_captions_are_literal_and_one_seed_has_no_error(prepared):
    texts = ["<b>$\\frac{70", "$5 and $6", "# many *words* " * 50, "a\n<script>"]
    rows = pd.DataFrame({"clipmem": 0.5, "error": [0.1, np.nan, 0.1, 0.1], "row": range(4), "caption": texts})
    rows = rows.assign(corruption="partly_swapped")
    figure = explore.picture(rows, prepared, "a sentence")
    figure.canvas.draw()  # where TeX is read, the first text raises
    first, second = figure.axes[:2]
    assert first.get_xlabel() == "<b>$\\frac{70"
    assert first.get_title() == "CLIPMem +0.50 ± 0.10\npartly swapped"
    assert second.get_title() == "CLIPMem +0.50\npartly swapped"
    assert figure.axes[3].get_xlabel() == "a\n<script>", "the right caption has a line of its own"


def test_without_a_front_end_there_is_the_static_picture_alone(trained, prepared, monkeypatch):
    shown = []
    monkeypatch.setattr(explore.figures, "show", shown.append)
    pool = prepared.table.loc[prepared.table["subset"] == "pool", ["pair_id", "corruption"]]
    explore.explore(pool.assign(clipmem=np.linspace(0, 1, len(pool)), error=0.1), prepared)
    assert not explore.attended() and len(shown) == 1
    places = [float(ax.get_title().split()[1]) for ax in shown[0].axes]
    assert places == pytest.approx([0.05, 0.05, 0.5, 0.5, 0.95, 0.95], abs=0.015)
