"""The benchmark counts the operations that are run, compares equal functions, and says what it could not measure."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import benchmark, benchmark_peer, benchmark_probe, benchmark_work, models
from lib.recipes import Data

PROBED = {"seconds": 5.0, "megabytes": 900.0, "step": 0.5, "loading": 3.0, "own": 800.0}


@pytest.fixture(scope="module")
def made_up():
    return benchmark_work.synthetic(Data("synthetic", 32, 300, 40, 40, 40, 40))


@pytest.fixture
def recipe(tiny, made_up):
    return replace(tiny, data=made_up.data)


def tower(n, width, layers, executed):
    """Forward operations of a tower on n positions, with the usual MLP of 4 times its width, by hand."""
    block = 2 * n * 12 * width**2 + 2 * 2 * n**2 * width
    pooled = 2 * (10 + 2 * n) * width**2 + 2 * 2 * n * width  # keys and values of all positions, the rest of one
    return (layers - 1) * block + (pooled if executed else block)


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize(("name", "width", "layers"), [("smoke", 64, (2, 2)), ("laptop", 128, (4, 3))])
def test_counted_operations_are_those_counted_by_hand(name, width, layers, executed):
    patches, tokens, batch = 36, 24, 6  # of 8 x 8 pixels, in pictures of 48 x 48
    forward = 2 * patches * 3 * 8 * 8 * width + 2 * 2 * width * width + 2 * 2 * batch * width
    forward += tower(patches + 1, width, layers[0], executed) + tower(tokens, width, layers[1], executed)
    assert benchmark_work.operations(name, 48, tokens, batch, executed) == 3 * forward


@pytest.mark.parametrize("context", [24, 77])
def test_both_sides_train_the_same_function(recipe, prepared, context):
    gaps = benchmark_peer.loss_gaps(replace(recipe, data=prepared.data), prepared, context, batches=2)
    assert len(gaps) == 2 and max(gaps) < 1e-5


def test_a_different_function_shows_as_a_gap(recipe, prepared, monkeypatch):
    whole = models.encode_text
    monkeypatch.setattr(models, "encode_text", lambda model, tokens: whole(model, tokens[:, :4]))
    assert min(benchmark_peer.loss_gaps(replace(recipe, data=prepared.data), prepared, 24, batches=1)) > 1e-3


def test_made_up_captions_have_the_lengths_of_flickr8k_and_survive_the_tokenizer(made_up):
    lengths = (made_up.tokens[:, 0] > 0).sum(axis=1)
    assert 13.5 < lengths.mean() < 15.5 and lengths.max() <= 24
    assert all(n == len(own[0].split()) + 2 for n, own in zip(lengths, made_up.captions, strict=True))
    assert made_up.pairs.images.std() > 20
    every = np.arange(len(lengths))
    whole, grouped = (benchmark_work.run_length(made_up, every, 25, groups) for groups in (1, 4))
    assert lengths.mean() < grouped < whole <= 24


def test_open_clip_train_is_given_the_same_tokens(made_up):
    from open_clip import get_tokenizer

    longest = made_up.tokens.shape[2]
    texts = [own[0] for own in made_up.captions[:5]]
    theirs = benchmark_peer._compact(get_tokenizer("ViT-B-32"), made_up.token_ids, longest, 77, texts)
    assert theirs.shape == (5, 77) and not theirs[:, longest:].any()
    assert np.array_equal(theirs[:, :longest], made_up.tokens[:5, 0])


def test_open_clip_train_runs_and_is_timed(recipe, made_up, tmp_path, monkeypatch):
    if lacking := benchmark_peer.missing():
        pytest.skip(f"needs {', '.join(lacking)}")
    stepped, plain = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: stepped.append(plain(self, *a, **k)))
    peer = benchmark_peer.prepare_peer(recipe, made_up, 24, 4, tmp_path)
    assert peer() > 0 and len(stepped) == 4


def test_turns_alternate(monkeypatch, capsys):
    calls = []
    found = benchmark_work.in_turns({name: lambda name=name: calls.append(name) or len(calls) for name in "AB"})
    assert calls == ["A", "B"] * benchmark_work.ROUNDS and found["B"] == (2, 4, 6)


def test_our_loop_and_scoring_are_timed_as_notebooks_run_them(recipe, made_up, monkeypatch):
    monkeypatch.setattr("lib.sweep.side_by_side", lambda: 2)
    assert benchmark_work.side_by_side(recipe, made_up, 2) > 0
    assert benchmark_work.timed_scoring(recipe, made_up, augmentations=2) > 0


def test_growth_probe_reports_time_and_memory():
    found = benchmark_probe.grown("smoke", 50, 32, 200, steps=1)
    assert found["step"] > 0 and found["loading"] > 0 and 50 < found["own"] <= found["megabytes"]


def test_pairs_on_disk_are_no_memory_of_our_own(tmp_path):
    benchmark_probe.write_mapped(tmp_path, 224, 2000)  # 0.3 GB
    found = benchmark_probe.probe(f"grown('smoke', 4, 224, 2000, 1, 1, {str(tmp_path)!r}, 4)")
    assert found["megabytes"] - found["own"] > 250


def test_probe_failure_names_the_call():
    with pytest.raises(RuntimeError, match=r"(?s)nothing\(\) ended with status 1.*no attribute"):
        benchmark_probe.probe("nothing()")


@pytest.fixture
def quick(monkeypatch, made_up, recipe):
    """Every measurement replaced by a number: what is left is the table."""
    rates = {"peak": 120.0, "ours": 480.0, "alone": 240.0, "all cores": 300.0, "scoring": 100.0}
    rates |= {"77": 160.0, "24": 280.0}
    monkeypatch.setattr(benchmark_work, "workload", lambda dataset, steps: (recipe, made_up))
    monkeypatch.setattr(
        benchmark_work, "in_turns", lambda contestants: {name: (rates[name],) * 3 for name in contestants}
    )
    monkeypatch.setattr(benchmark, "probe", lambda call: PROBED)


def test_table_and_json_hold_every_row(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_peer, "missing", lambda: [])
    monkeypatch.setattr(benchmark_peer, "prepare_peer", lambda *args: None)
    assert benchmark.main(["--json", str(tmp_path / "benchmark.json")]) == 0
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    assert {"machine", "versions", "date", "data", "rows"} <= set(kept) and kept["machine"]["cores"] > 0
    rows = {row["name"]: row for row in kept["rows"]}
    assert rows["ours / open_clip_train, 77 tokens"]["median"] == 3.0
    assert rows["open_clip_train, 24 tokens"] | {"note": ""} == {
        "group": "training", "name": "open_clip_train, 24 tokens", "unit": "pairs/s",
        "median": 280.0, "min": 280.0, "max": 280.0, "n": 3, "note": "",
    }  # fmt: skip
    assert rows["cost as a share of training, the paper's numbers"]["median"] == pytest.approx(100 * 200 / (7e6 / 480))
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    assert printed.count("no accelerator at hand") == 3


def test_memory_is_measured_by_itself(quick, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "write_mapped", lambda *args: None)
    assert benchmark.main(["memory"]) == 0
    printed = capsys.readouterr().out
    assert "peak of its own memory" in printed and "limit 8 GB" in printed and "open_clip_train" not in printed


def test_without_the_two_packages_it_says_which_to_install(quick, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_peer, "find_spec", lambda name: None)
    assert benchmark.main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "open_clip_train, 77" in line]
    assert all("pip install braceexpand==0.1.7 webdataset==1.0.2" in line and "—" in line for line in lines)


@pytest.mark.parametrize(("others", "valid"), [(0.02, True), (0.9, False)])
def test_a_busy_machine_makes_the_speeds_invalid(others, valid):
    row = benchmark._others_row(10.0, 10.0 + 100 * others, 100.0)
    assert row.values == pytest.approx((others,)) and ("NOT VALID" not in row.note) == valid
    assert benchmark._others_row(None, None, 100.0).values == ()


def test_a_different_function_fails_the_benchmark(quick, monkeypatch):
    monkeypatch.setattr(benchmark_peer, "missing", lambda: ["webdataset==1.0.2"])
    monkeypatch.setattr(benchmark, "loss_gaps", lambda *args, **kwargs: [0.1])
    assert benchmark.main([]) == 1


def test_what_a_gpu_is_asked_adds_up(monkeypatch, made_up, recipe, prepared):
    """The three GPU rows with every measurement replaced by a number."""
    for module in (benchmark_work, benchmark_peer):
        monkeypatch.setattr(module, "synthetic", lambda data: made_up)
    monkeypatch.setattr(benchmark_peer, "missing", lambda: [])
    monkeypatch.setattr(benchmark_peer, "prepare_peer", lambda *args: lambda: 50.0)
    monkeypatch.setattr(benchmark_peer, "side_by_side", lambda *args: 100.0)
    monkeypatch.setattr(benchmark_work, "timed_training", lambda *args: 1000.0)
    monkeypatch.setattr(benchmark_work, "matrix_peak", lambda: 1e5)
    monkeypatch.setattr(benchmark_work, "prepare", lambda data, cache: prepared)
    monkeypatch.setattr("lib.tables.scores", lambda *args: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    share, ratio, minutes = benchmark.accelerator_rows("flickr8k")
    assert 25 < share.values[0] < 50 and "GFLOP a pair; peak 100 TFLOP/s" in share.note
    assert ratio.values == (2.0,) * 3 and len(minutes.values) == 1
    assert benchmark.accelerator_rows(None)[2].note == "give --dataset flickr8k"
