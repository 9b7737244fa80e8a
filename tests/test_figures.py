"""lib/figures.py: plots draw what they say, no legend lies on the data, and saved files are stable and traceable."""

import hashlib
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import figures, stats

plt.switch_backend("Agg")
pytestmark = pytest.mark.filterwarnings("error")
SUBSETS = ["pool", "shared", "external"]


def scores(seeds=2, pairs=60) -> pd.DataFrame:
    """Scores of three subsets; of pool and external pairs a fifth is swapped, three tenths are partly swapped."""
    rng, order, rows = np.random.default_rng(0), np.arange(pairs), []
    planted = np.select([order < pairs / 5, order < pairs / 2], [1.0, (1 + order % 3) / 4], 0.0)
    for place, subset in enumerate(SUBSETS):
        share = planted * (subset != "shared")
        same = {"pair_id": order + place * pairs, "subset": subset, "share_swapped": share}
        same["corruption"] = np.select([share == 1, share > 0], ["swapped", "partly_swapped"], "clean")
        for seed in range(seeds):
            memory = rng.normal(share / 2 * (subset == "pool"), 0.1)
            rows.append(pd.DataFrame({"seed": seed, **same, "clipmem": memory}))
    table = pd.concat(rows, ignore_index=True)
    return table.assign(vagueness=table["pair_id"] % pairs / pairs, loss_in=rng.normal(table["share_swapped"], 1))


@pytest.fixture
def ax():
    figures.theme()
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()
    if legend := ax.get_legend():
        boxes = [artist.get_window_extent() for artist in (legend, ax, ax.xaxis.label)]
        assert figure.bbox.contains(*boxes[0].min) and boxes[0].count_overlaps(boxes[1:]) == 0
    plt.close("all")


def test_hills_have_the_mean_of_every_group_and_return_what_decides_the_claim(ax):
    drawn = figures.by_group(scores(), ax)
    assert (drawn["subset"] == "pool").all() and stats.difference(drawn) == stats.difference(
        scores()[lambda t: t.subset == "pool"]
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "clean\n30 pairs",
        "partly swapped\n18 pairs",
        "swapped\n12 pairs",
    ]
    points = next(line.get_xdata() for line in ax.lines if line.get_marker() == "o")
    means = drawn.groupby("corruption")["clipmem"].mean()
    assert list(points) == pytest.approx(means[["clean", "partly_swapped", "swapped"]].tolist())


def test_detection_shows_each_score_the_best_first_and_chance(ax):
    pool = scores()[lambda t: t.subset == "pool"]
    drawn = figures.detection(pool, ax, {"loss_in": 1, "clipmem": 1})
    best = {figures.NAMES[name]: stats.detect(pool, name).value for name in ("clipmem", "loss_in")}
    assert dict(zip(drawn["name"], drawn["value"], strict=True)) == best
    assert [label.get_text() for label in ax.get_yticklabels()] == sorted(best, key=best.get, reverse=True)
    assert "chance" in ax.get_legend_handles_labels()[1]


def test_responses_are_means_at_each_value_or_in_bins(ax):
    pool = scores()[lambda t: t.subset == "pool"]
    drawn = figures.response(pool, ax, "share_swapped", figures.RED)
    assert drawn["share_swapped"].tolist() == sorted(drawn["share_swapped"]) and drawn["value"].is_monotonic_increasing
    binned = figures.response(pool, ax, "vagueness", figures.RED, bins=[0, 0.5, 1])
    assert sorted(binned["n"]) == [29, 31] and binned["vagueness"].between(0.2, 0.8).all()


def test_curves_over_epochs_and_layers_return_what_they_drew(ax):
    epochs = pd.DataFrame({"seed": [0, 0, 1, 1], "epoch": [1, 2] * 2, "corruption": "clean", "clipmem": 0.1, "R@10": 0})
    assert list(figures.along_training(epochs, ax, "R@10", by=None)) == ["seed", "epoch", "R@10"]
    assert list(figures.along_training(epochs, ax)) == ["seed", "epoch", "corruption", "clipmem"]
    layers = pd.DataFrame({"paradigm": "view", "layer": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "unitmem": [1, 3, 2, 2]})
    assert list(figures.by_layer(layers, ax, "unitmem").value) == [2, 2]


def test_forest_keeps_the_order_of_names_and_draws_values_without_limits(ax):
    rows = pd.DataFrame({"name": ["b", "a", "b", "a"], "encoder": ["image"] * 2 + ["text"] * 2, "value": 0.5})
    figures.forest(rows.assign(low=-np.inf, high=np.inf), ax, figures.ENCODERS, "encoder")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]


def test_frontier_names_each_point_and_wide_intervals_leave_the_picture(ax):
    points = {"name": ["a", "b", "c", "d"], "family": "CLIP", "m": [0.3, 0.1, 0.2, 0.1], "u": [0.9, 0.5, 0.4, 0.5]}
    figures.frontier(pd.DataFrame({**points, "m_low": -9, "m_high": 9, "u_low": 0, "u_high": 9}), ax, {})
    placed = {text.get_text(): text.xy for text in ax.texts}
    assert placed == {"a": (0.3, 0.9), "b": (0.1, 0.5), "c": (0.2, 0.4), "d": (0.1, 0.5)}
    assert [text.get_text() for text in ax.texts if text.get_position()[1] < 0] == ["a"]
    assert ax.get_xlim() == pytest.approx((0.04, 0.36))


def test_wall_shows_dollars_literally_wraps_captions_and_the_watermark_is_drawn():
    texts = ["$\\frac{70", "$5 and $6", "many words " * 50, "a"]
    figure = figures.wall(np.zeros((4, 3, 8, 8), dtype=np.uint8), texts, texts, columns=3)
    figures.watermark(figure)
    figure.canvas.draw()  # where TeX is read, the first text raises
    texts = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label) if text.get_text()]
    assert len(texts) == 8 and not any(text.get_parse_math() for text in texts)
    assert figure.axes[2].get_xlabel().count("\n") == 4 and "SMOKE" in figure.texts[0].get_text()


def test_a_caption_in_a_table_is_neither_html_nor_tex():
    figures.theme()
    shown = pd.DataFrame({"caption": ["<script>alert(1)</script> $x$ and $y$"]})._repr_html_()
    assert "&lt;script&gt;" in shown and "mathjax_ignore" in shown


def test_saved_files_are_stable_and_say_where_they_come_from(tmp_path):
    figure, table = plt.figure(), pd.DataFrame({"seed": [0, 1], "value": [1 / 3, np.nan]})
    paths = figures.save(figure, "01_a", table, tmp_path, {"notebook": "01_x"})
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures.save(figure, "01_a", table, tmp_path, {"notebook": "01_x"})] == first
    assert [path.name for path in paths] == ["01_a.png", "01_a.pdf", "01_a.csv", "01_a.json"]
    facts = {"figure": "01_a", "rows": 2, "csv_sha256": hashlib.sha256(first[2]).hexdigest(), "notebook": "01_x"}
    assert json.loads(first[3]) == facts and first[2] == b"seed,value\n0,0.333333\n1,\n"


@pytest.mark.parametrize("dtype", [object, "str", "category"])
def test_a_caption_in_any_column_is_data_and_a_score_named_caption_is_not(dtype):
    leak = pd.DataFrame({"pair_id": [1, 2], "note": pd.Series([None, " A  DOG\nruns"], dtype=dtype)})
    assert figures.shows_data(plt.figure(), leak, {"a dog runs"}) and not figures.shows_data(plt.figure(), leak, {"a"})
    assert not figures.shows_data(plt.figure(), pd.DataFrame({"caption": [0.5]}), ["0.5"])
    assert figures.shows_data(figures.wall(np.zeros((1, 3, 4, 4), np.uint8), ["a"], ["t"], 1), leak, [])


def test_gains_show_what_could_have_been_found_and_paths_every_seed(ax):
    rows = pd.DataFrame(
        {"name": ["a", "b"], "value": [0.3, -0.1], "low": [0.1, -0.3], "high": [0.5, 0.1], "detectable": 0.2}
    )
    figures.gains(rows, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    table = pd.DataFrame(
        {"encoder": "text", "seed": [0, 0, 1, 1], "epoch": [1, 2] * 2, "loss": [2, 1, 2, 1.5], "m": [0, 1, 0, 2]}
    )
    _, other = plt.subplots()
    figures.paths(table, other, "loss", "m")
    assert len(other.lines) == 3 and other.lines[-1].get_ydata().tolist() == [0, 1.5]
