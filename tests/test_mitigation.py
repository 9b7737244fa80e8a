"""What a mitigation does to memorization and utility: naive forms on made-up tables, and a whole study in small."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from lib import mitigation, plans, plots, probes, sslmem, stats, sweep, tables
from lib.recipes import at_scale, f_and_g

MEANS = {"CLIP": 0.5, "2 captions": 0.4, "noise after 0.05": 0.3, "combined": 0.35}


def made_up(seeds=3, pairs=25):
    """Scores and utilities of four conditions."""
    rng, scores, utility = np.random.default_rng(0), [], []
    for name, mean in MEANS.items():
        for seed in range(seeds):
            raw = rng.normal(mean + 0.02 * seed, 0.1, pairs)
            columns = {"condition": name, "seed": seed, "pair_id": rng.permutation(pairs), "clipmem": raw}
            columns["clipmem_normalised"] = raw / (raw.max() - raw.min())
            scores.append(pd.DataFrame(columns))
            utility.append({"condition": name, "seed": seed, "probe": rng.normal(0.6, 0.05), "tested": 40})
    return pd.concat(scores, ignore_index=True), pd.DataFrame(utility).sample(frac=1, random_state=0)


def of(table, name, seed, column):
    return table[(table["condition"] == name) & (table["seed"] == seed)].set_index("pair_id")[column]


def t_interval(values):
    return reference.t.interval(0.95, len(values) - 1, np.mean(values), reference.sem(values))


@pytest.mark.parametrize("base", [at_scale("laptop", "scenes"), at_scale("laptop", "photos.parquet")])
def test_every_condition_has_a_family_with_a_colour(base):
    expected = {"captions": "captions", "after": "noise after", "before": "noise before", "augmented": "augmented"}
    expected |= {"removed": "removed", "combined": "combined", "CLIP": "CLIP"}
    for name in plans.mitigations(base):
        (word,) = [word for word in expected if word in name.split()]
        assert mitigation.family(name) == expected[word] and expected[word] in plots.FAMILIES


def test_less_memorized_is_paired_by_seed_and_pair():
    scores, _ = made_up()
    found = mitigation.less_memorized(scores.sample(frac=1, random_state=0), "2 captions")
    falls = [of(scores, "CLIP", s, "clipmem") - of(scores, "2 captions", s, "clipmem") for s in range(3)]
    assert found.value == pytest.approx(np.mean([fall.mean() for fall in falls]))
    assert (found.seeds, found.n) == (3, 25) and found.low < found.value < found.high
    by_ids = [f.sort_index().to_numpy() for f in falls]
    expected = stats.mean(
        pd.DataFrame(
            {"seed": np.repeat(range(3), 25), "pair_id": np.tile(range(25), 3), "fall": np.concatenate(by_ids)}
        ),
        "fall",
    )
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("than", ["CLIP", "combined"])
def test_more_useful_is_the_paired_difference_over_seeds(than):
    _, utility = made_up()
    at = utility.set_index(["condition", "seed"])["probe"]
    gaps = [at["2 captions", seed] - at[than, seed] for seed in range(3)]
    found = mitigation.more_useful(utility, "probe", "2 captions", than)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(gaps), *t_interval(gaps)))


def test_range_effect_is_what_dividing_by_the_range_adds():
    scores, _ = made_up()
    effect = []
    for seed in range(3):
        fall = {}
        for column in ("clipmem", "clipmem_normalised"):
            plain, noisy = (of(scores, name, seed, column).mean() for name in ("CLIP", "noise after 0.05"))
            fall[column] = (plain - noisy) / plain
        effect.append(fall["clipmem_normalised"] - fall["clipmem"])
    found = mitigation.range_effect(scores, "noise after 0.05")
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(effect), *t_interval(effect)))
    wider = scores["condition"] == "noise after 0.05"  # one extreme pair, the same mean: only the range changes
    stretched = scores.assign(clipmem_normalised=scores["clipmem_normalised"] / (1 + wider))
    assert mitigation.range_effect(stretched, "noise after 0.05").value > found.value + 0.1


def test_summary_gives_every_condition_its_means_with_limits():
    scores, utility = made_up()
    found = mitigation.summary(scores, utility, "probe").set_index("name")
    assert list(found.index) == list(MEANS)
    for name, row in found.iterrows():
        m = [of(scores, name, seed, "clipmem").mean() for seed in range(3)]
        u = utility.loc[utility["condition"] == name, "probe"].to_numpy()
        assert list(row[["m", "m_low", "m_high"]]) == pytest.approx([np.mean(m), *t_interval(m)])
        assert list(row[["u", "u_low", "u_high"]]) == pytest.approx([np.mean(u), *t_interval(u)])
        assert row["family"] == mitigation.family(name)


def test_pareto_keeps_what_nothing_beats_in_both():
    rng = np.random.default_rng(0)
    for _ in range(20):
        m, u = rng.integers(0, 6, (2, 15)) / 5
        kept = []
        for i in range(15):
            better = [(m[j] < m[i] and u[j] >= u[i]) or (m[j] <= m[i] and u[j] > u[i]) for j in range(15)]
            kept += [] if any(better) else [i]
        found = plots.pareto(m, u)
        assert sorted(found) == kept and (np.diff(m[found]) >= 0).all() and (np.diff(u[found]) >= 0).all()


def test_a_small_study_of_mitigations(prepared, trained):
    conditions = {
        "CLIP": trained,
        "18% removed by clipmem": replace(trained, remove=7, remove_by="clipmem"),
        "18% removed by random": replace(trained, remove=7, remove_by="random"),
    }
    scores = mitigation.remaining_scores(conditions, [0, 1], prepared, 2)
    rows = prepared.subsets["candidate"]
    candidates = set(prepared.pairs.pair_ids[rows])
    for name, base in conditions.items():
        whole = tables.scores(base, [0, 1], prepared, 2)
        for seed in (0, 1):
            ours = of(scores, name, seed, "clipmem")
            gone = sweep.left_out(f_and_g(base, seed)[0], prepared)
            gone = set() if gone is None else set(prepared.pairs.pair_ids[gone])
            assert len(ours) == 40 - len(gone) and set(ours.index) == candidates - gone
            assert len(gone) == (7 if "removed" in name else 0)
            expected = whole[whole["seed"] == seed].set_index("pair_id")["clipmem"].loc[ours.index]
            np.testing.assert_array_equal(ours, expected)
    columns = {"condition", "seed", "pair_id", "subset", "kind", "dose", "vagueness", "rarity", "clipmem"}
    columns |= {"clipmem_plain", "clipmem_normalised", "similarity_f", "similarity_g", "loss_f"}
    assert set(scores) == columns | {"sslmem_image", "sslmem_text"} and scores.notna().all().all()
    f, g = (sslmem.by_encoder(sweep.load(r, prepared), prepared, rows) for r in f_and_g(trained, 1))
    ours = of(scores, "CLIP", 1, "sslmem_text")
    np.testing.assert_allclose(ours, (g["text"] - f["text"]).set_axis(f["pair_id"]).loc[ours.index])
    utility = mitigation.utilities(conditions, [0, 1], prepared, [])
    assert len(utility) == 6 and utility.notna().all().all()
    assert {"condition", "seed", "probe_labels", "image_to_text_r10", "text_to_image_r10"} <= set(utility)
    row = utility.iloc[-1]
    assert row["seed"] == 1
    own = probes.utilities(sweep.load(f_and_g(conditions[row["condition"]], 1)[0], prepared), prepared, [])
    assert row[list(own)].to_dict() == own
    assert utility["image_to_text_r10"].nunique() > 1
    found = mitigation.summary(scores, utility, "probe_labels")
    assert (
        found["name"].tolist() == list(conditions) and np.isfinite(found.drop(columns=["name", "family"])).all().all()
    )
