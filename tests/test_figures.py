"""lib/figures.py: plots draw what they say, nothing overlaps or warns, and saved files are stable and traceable."""

import hashlib
import json
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import figures, stats

PROVENANCE = {"notebook": "02_x", "dataset": "scenes", "scale": "smoke", "seeds": 2, "run_keys": ["a"], "commit": "c"}


def scores(seeds=2, pairs=60) -> pd.DataFrame:
    """Per-pair scores of four subsets; a fifth of the candidates is wrong, three tenths are dosed."""
    rng, rows = np.random.default_rng(0), []
    for place, subset in enumerate(figures.SUBSETS):
        order, planted = np.arange(pairs) / pairs, subset == "candidate"
        kind = np.select([planted & (order < 0.2), planted & (order < 0.5)], ["wrong", "dosed"], "clean")
        dose = np.select([kind == "wrong", kind == "dosed"], [1.0, (1 + np.arange(pairs) % 3) / 4], 0.0)
        truth = {"vagueness": rng.random(pairs), "rarity": rng.random(pairs)}
        for seed in range(seeds):
            drawn = {"clipmem": dose / 2 + rng.normal(0, 0.1, pairs), "null": rng.normal(0, 0.05, pairs)}
            same = {
                "seed": seed,
                "pair_id": np.arange(pairs) + place * pairs,
                "subset": subset,
                "kind": kind,
                "dose": dose,
            }
            rows.append(pd.DataFrame({**same, **truth, **drawn, "similarity_g": -dose + rng.normal(0, 1, pairs)}))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def ax():
    figures.theme()
    figure, ax = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield ax
        figure.canvas.draw()
        assert_legend_is_off_the_data(ax)
    plt.close("all")


def assert_legend_is_off_the_data(ax):
    if (legend := ax.get_legend()) is not None:
        assert not legend.get_window_extent().overlaps(ax.get_window_extent())
        assert ax.figure.bbox.contains(*legend.get_window_extent().min)


def test_distributions_give_the_mean_of_every_subset_beside_its_null(ax):
    table = scores()
    drawn = figures.distributions(table, ax)
    assert list(drawn[drawn.score == "CLIPMem"].subset) == list(figures.SUBSETS) and len(drawn) == 8
    external = drawn[(drawn.subset == "external") & (drawn.score == figures.NAMES["null"])].iloc[0]
    assert external.value == pytest.approx(table[table.subset == "external"].null.mean())
    assert [t.get_text().split("\n")[0] for t in ax.get_yticklabels()] == list(figures.SUBSETS)


def test_by_kind_returns_the_pairs_from_which_the_numbers_follow(ax):
    table = scores()
    drawn = figures.by_kind(table, ax)
    candidates = table[table.subset == "candidate"]
    assert stats.difference(drawn, n_boot=20) == stats.difference(candidates, n_boot=20)
    assert stats.detect(drawn, n_boot=20) == stats.detect(candidates, n_boot=20)


def test_detection_shows_each_score_and_chance(ax):
    table = scores()
    rows = stats.detection(table[table.subset == "candidate"], {"clipmem": 1, "similarity_g": -1}, n_boot=20)
    assert figures.detection(rows, ax) is rows
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CLIPMem", "g's similarity"]
    assert "chance, ROC AUC" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_dose_response_rises_and_its_null_stays(ax):
    drawn = figures.dose_response(scores(), ax)
    means = drawn.pivot(index="dose", columns="score", values="value")
    assert list(means.index) == [0, 0.25, 0.5, 0.75, 1] and means["CLIPMem"].is_monotonic_increasing
    assert means[figures.NAMES["null"]].abs().max() < 0.1


def test_vague_rare_bins_clean_candidates_evenly_and_needs_ground_truth(ax):
    drawn = figures.vague_rare(scores(), ax, "vagueness", bins=3)
    assert list(drawn[drawn.score == "CLIPMem"].n) == [10, 10, 10]
    with pytest.raises(ValueError, match="known rarity"):
        figures.vague_rare(scores().assign(rarity=np.nan), ax, "rarity")


def test_along_training_draws_kinds_and_a_single_measure(ax):
    epochs = pd.DataFrame([(s, e, k, e * 0.1, 0.3) for s in (0, 1) for e in range(4) for k in ("clean", "wrong")])
    epochs.columns = ["seed", "epoch", "kind", "clipmem", "R@10"]
    assert len(figures.along_training(epochs, ax)) == 16 and len(ax.lines) == 2
    _, small = plt.subplots()
    assert list(figures.along_training(epochs, small, "R@10", None)) == ["seed", "epoch", "R@10"]
    assert small.get_ylabel() == "R@10"


@pytest.mark.parametrize("plot", [figures.distributions, figures.by_kind, figures.dose_response])
def test_one_seed_without_a_null_can_be_drawn(ax, plot):
    plot(scores(seeds=1).assign(null=np.nan), ax)


def test_wall_wraps_captions_and_leaves_empty_places_blank():
    images = np.zeros((4, 3, 8, 8), dtype=np.uint8)
    figure = figures.wall(images, ["a very long caption of many words " * 5] * 4, ["+0.1"] * 4, columns=3)
    assert len(figure.axes) == 6 and sum(bool(a.images) for a in figure.axes) == 4
    assert figure.axes[0].texts[0].get_text().count("\n") == 4
    plt.close(figure)


def test_saved_files_are_stable_and_say_where_they_come_from(tmp_path):
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    table = pd.DataFrame({"seed": [0, 1], "value": [1 / 3, np.nan]})
    paths = figures.save(figure, "01_a", table, tmp_path, PROVENANCE)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    figures.save(figure, "01_a", table, tmp_path, PROVENANCE)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert paths == [str(tmp_path / f"01_a.{kind}") for kind in ("png", "pdf", "csv", "json")] and len(first) == 4
    assert first["01_a.csv"] == b"seed,value\n0,0.333333\n1,\n"
    facts = json.loads(first["01_a.json"])
    assert facts["csv_sha256"] == hashlib.sha256(first["01_a.csv"]).hexdigest() and facts["notebook"] == "02_x"
    plt.close(figure)


def test_a_figure_in_the_project_is_named_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    figure = plt.figure()
    paths = figures.save(figure, "01_a", pd.DataFrame({"a": [1]}), tmp_path / "figures" / "scenes-smoke", PROVENANCE)
    assert paths[0] == "figures/scenes-smoke/01_a.png"
    plt.close(figure)


def test_pictures_and_captions_of_other_data_are_not_saved(tmp_path):
    figure = figures.wall(np.zeros((1, 3, 4, 4), np.uint8), ["a"], ["t"], columns=1)
    photos = PROVENANCE | {"dataset": "flickr8k"}
    for drawn, table in ((figure, pd.DataFrame({"a": [1]})), (plt.figure(), pd.DataFrame({"caption": ["a dog"]}))):
        with pytest.raises(ValueError, match="pictures or captions of flickr8k"):
            figures.save(drawn, "wall", table, tmp_path, photos)
        figures.save(drawn, "wall", table, tmp_path, PROVENANCE)
    plt.close("all")


def test_provenance_names_versions_and_no_path(tmp_path):
    made_by = figures.provenance("02_x", str(tmp_path / "flickr8k.parquet"), "laptop", 3, ["b", "a"])
    assert made_by["dataset"] == "flickr8k" and made_by["run_keys"] == ["a", "b"]
    assert made_by["versions"]["numpy"] == np.__version__ and str(tmp_path) not in json.dumps(made_by)
    assert figures.commit(tmp_path) == "unknown"
