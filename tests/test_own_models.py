"""Models of a reader's own: loaded or refused, embedded while streaming, scored; and the f and g that are here."""

import json

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import photos, scores, store
from lib.companion import entries, live, own_models
from lib.companion.run import absolute
from lib.model import embed_images, embed_texts
from lib.photos import DataError

N = 120
IN_F, IN_G = [i % 3 == 0 for i in range(N)], [i % 3 == 1 for i in range(N)]
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
TEXT = {"vocab_size": 49408, "context_length": 32, "width": 32, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    found = [tmp_path_factory.mktemp("checkpoint") for _ in range(2)]
    for seed, folder in enumerate(found):
        torch.manual_seed(seed)
        save_file(open_clip.model.CLIP(16, VISION, TEXT).state_dict(), folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    return found


@pytest.fixture
def given(folders, tmp_path):
    rng, names = np.random.default_rng(0), ["swapped" if i % 5 == 0 else "clean" for i in range(N)]
    pairs = pd.DataFrame({"image": [b"P6 20 16 255 " + rng.bytes(960) for _ in range(N)], "corruption": names})
    pairs["captions"] = [[f"a photo of thing {i}", f"thing number {i}"] for i in range(N)]
    pairs.assign(f=IN_F, g=IN_G).to_parquet(tmp_path / "mine.parquet")
    given = dict.fromkeys(("captions", "image"), "") | {"dataset": str(tmp_path / "mine.parquet")}
    return given | {"models": ",".join(f"local-dir:{folder}" for folder in folders), "seen": "f,g"}


def score(given, **changes):
    return own_models.score(*own_models.begin(**given | changes))


@torch.no_grad()
def test_scores_are_those_of_open_clip_by_hand(given, monkeypatch):
    monkeypatch.setattr(own_models.model, "light_crop", lambda x, generator: x)
    monkeypatch.setattr(own_models, "BLOCK", 50)  # several, of which one is smaller
    table, cells = score(given), pd.read_parquet(given["dataset"])
    held = np.flatnonzero(~(np.array(IN_F) | np.array(IN_G)))
    for m, name, own in zip("fg", given["models"].split(","), (IN_F, IN_G), strict=True):
        model, preprocess = open_clip.create_model_from_pretrained(name)
        pictures = torch.stack([preprocess(photos.decode_image(cell)) for cell in cells["image"]])
        image = model.encode_image(pictures, normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)([own[0] for own in cells["captions"]]), normalize=True)
        cosine, found, known = (image @ text.T).numpy(), [], np.flatnonzero(own)
        for i in range(N):
            others, e = [j for j in held if j != i], np.exp(cosine / 0.07)
            losses = [-np.log(e[i, i] / (e[i, i] + wrong.sum())) for wrong in (e[i, others], e[others, i])]
            contrast = cosine[i, i] - cosine[i, others].mean() - cosine[others, i].mean()
            found.append([cosine[i, i], np.mean(losses), contrast])
        lemon = scores.lemon(image, text, image[known], text[known], scores.positions(np.arange(N), known), 30)
        np.testing.assert_allclose(table[[f"similarity_{m}", f"loss_{m}", f"contrast_{m}"]], found, atol=2e-5)
        np.testing.assert_allclose(table[f"lemon_{m}"], lemon, atol=1e-5)
        assert table[f"seen_{m}"].tolist() == own and (table[f"augmentation_{m}"] == 0).all()
    np.testing.assert_allclose(table["clipmem"], np.where(IN_G, -1, 1) * (table["contrast_f"] - table["contrast_g"]))


def test_one_model_needs_no_membership_and_a_damaged_embedding_is_made_again_whole(given):
    one = score(given, models=given["models"].split(",")[0], seen="")
    assert one["seen_f"].isna().all() and one["loss_f"].notna().all() and not {"clipmem", "lemon_g"} & set(one)
    first, entry = score(given), next((store.root() / "embedding").glob("*/table.parquet"))
    entry.write_bytes(entry.read_bytes()[:-9] + b"x" * 9)
    store._sound.clear()  # as in another process
    with pytest.warns(UserWarning, match="made again"):
        pd.testing.assert_frame_equal(score(given), first)


def test_truth_and_membership_are_read_by_place_and_a_broken_row_is_left_out(given, tmp_path):
    shuffled = pd.read_parquet(given["dataset"]).sample(frac=1, random_state=0)  # parquet keeps the index of pandas
    shuffled.iat[60, 0] = b"no picture"
    shuffled.to_parquet(tmp_path / "shuffled.parquet")
    with pytest.warns(UserWarning, match="1 of 120 rows skipped .*: row 60"):
        table = score(given, dataset=str(tmp_path / "shuffled.parquet"))
    usable = [i for i in range(N) if i != 60]
    assert table["pair_id"].tolist() == usable and table["caption"][0] == shuffled["captions"].iloc[0][0]
    for name, own in {"corruption": "corruption", "seen_f": "f", "seen_g": "g"}.items():
        assert table[name].tolist() == shuffled[own].iloc[usable].tolist()


def test_a_file_lists_the_rows_that_a_model_saw_and_a_mask_is_refused(given, tmp_path):
    source, file = photos.open_source(given["dataset"]), tmp_path / "rows.txt"
    file.write_text("0\n7\n119\n")
    assert np.flatnonzero(own_models.membership(str(file), source)).tolist() == [0, 7, 119]
    file.write_bytes("0\r\n7\r\n".encode("utf-8-sig"))  # as Windows writes it
    assert np.flatnonzero(own_models.membership(str(file), source)).tolist() == [0, 7]
    bad = {"0\n1\n0\n": "line 3: .* each once; got '0' again: .* is a mask", "5\n\n7": "line 2", "5\n120": "line 2"}
    for text, message in (bad | {"": "line 1", "ü": "is no text in UTF-8"}).items():
        file.write_text(text, encoding="cp1252")
        with pytest.raises(DataError, match=message):
            own_models.membership(str(file), source)
    pd.read_parquet(given["dataset"]).assign(f=[0.0, np.nan, 1.0] * 40).to_parquet(given["dataset"])  # NaN: unknown
    source = photos.open_source(given["dataset"])
    assert own_models.membership("f", source)[:3].fillna(9).tolist() == [0, 9, 1]
    for entry, message in {"corruption": "row 0: expected true, false or nothing", "h": "'h' is no column of "}.items():
        with pytest.raises(DataError, match=message):
            own_models.membership(entry, source)


def test_what_cannot_be_loaded_is_refused_by_name(folders, tmp_path, monkeypatch):
    def refusal(name=f"local-dir:{tmp_path}", part="text_cfg", **changes):
        config = CONFIG | {part: CONFIG[part] | changes}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": config})
        with pytest.raises(DataError, match=name) as error:
            own_models.load(name)
        return str(error.value)

    code = type("Code", (), {"__reduce__": lambda self: (open, (str(tmp_path / "ran"), "w"))})  # when it is unpickled
    torch.save({"state_dict": code()}, tmp_path / "open_clip_pytorch_model.bin")
    assert "more than tensors and numbers" in refusal() and "\x1b" not in refusal() and not (tmp_path / "ran").exists()
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes((folders[0] / weights.name).read_bytes())
    for name in (f"local-dir:{tmp_path}", f"tiny:{weights}"):
        assert "visual.positional_embedding" in refusal(name, "vision_cfg", image_size=64)  # open_clip stretches it
        assert "positional_embedding" in refusal(name, context_length=48) and "resblocks.1" in refusal(name, layers=2)
        assert "foreign code" in refusal(name, tokenizer_kwargs={"trust_remote_code": True})
    assert "huge" in refusal("huge:openai") and "nothing.pt" in refusal(f"tiny:{tmp_path}/nothing.pt")
    good = load_file(weights)
    for name in ("epoch_1.bin", "epoch_2.bin"):
        torch.save(good, tmp_path / name)
    weights.unlink()
    assert "holds epoch_1.bin, epoch_2.bin: expected one model" in refusal()
    torch.save({"model": good, "state_dict": {**good}}, tmp_path / "two.pt")
    assert "holds 2 sets of weights" in refusal(f"tiny:{tmp_path}/two.pt")
    whole = (tmp_path / "epoch_1.bin").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1"
    for content, message in ((whole[:-999], "cut off"), (pointer, "Git LFS"), (b"", "empty")):
        (tmp_path / "bad.pt").write_bytes(content)
        assert message in refusal(f"tiny:{tmp_path}/bad.pt")
    proj = good["visual.proj"]
    for bad, message in {proj * torch.nan: "'visual.proj' holds NaN", proj.int(): "(32, 16, 'not float')"}.items():
        torch.save({**good, "visual.proj": bad}, tmp_path / "bad.pt")
        assert message in refusal(f"tiny:{tmp_path}/bad.pt")


def test_weights_are_found_below_what_training_loops_wrap_around_them(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": CONFIG})
    good, path = load_file(folders[0] / "open_clip_model.safetensors"), tmp_path / "lr 0.1 bs=64:$\\frac{1$.pt"
    digest, bias = own_models.load(f"tiny:{folders[0]}/open_clip_model.safetensors").digest, torch.tensor(-10.0)
    assert "CLIP, GELU, image size (32, 32), mean (0.481, 0.458, 0.408)" in capsys.readouterr().out
    for wrapped in (
        {f"module.{key}": one for key, one in good.items()},
        {f"module._orig_mod.{key}": one for key, one in good.items()},
        {"epoch": 3, "best": np.float64(0.5), "is_best": np.bool_(True), "model_state_dict": good},
        {"model": {"state_dict": {f"model.{key}": one for key, one in good.items()}}, "epoch": torch.tensor(1)},
    ):
        torch.save(wrapped, path)
        assert own_models.load(f"tiny:{path}").digest == digest
    torch.save({**good, "logit_bias": bias}, path)
    assert own_models.load(f"tiny:{path}").clip.logit_bias == bias  # trained with SigLIP's loss
    for text, found in {
        f"tiny:{path}": [f"tiny:{path}"],
        f"tiny:{path},local-dir:{folders[0]}": [f"tiny:{path}", f"local-dir:{folders[0]}"],
        "ViT-B-32:openai, ViT-B-32:laion2b": ["ViT-B-32:openai", "ViT-B-32:laion2b"],
        f"ViT-B-32:openai,tiny:{path}": ["ViT-B-32:openai", f"tiny:{path}"],
        f",{path}": ["", str(path)],
        ",in_g": ["", "in_g"],
        "": [],
    }.items():
        assert entries(text) == found and entries(",".join(map(absolute, found))) == found


def test_what_cannot_be_scored_is_refused(given, tmp_path):
    pairs, (checkpoint, _) = own_models.begin(**given)
    checkpoint.clip.text_projection.data[0, 0] = torch.nan
    with pytest.raises(DataError, match="did its training diverge"):
        own_models.score(pairs, [checkpoint])
    pd.read_parquet(given["dataset"])[:30].to_parquet(few := tmp_path / "few.parquet")
    same = ",".join([given["models"].split(",")[0]] * 2)
    for changes in ({"dataset": str(few)}, {"models": "a,b,c"}, {"seen": "f"}, {"models": ""}, {"models": same}):
        with pytest.raises(DataError, match=r"more than 30 pairs|expected one or two|are the same model"):
            score(given, **changes)


def test_without_models_the_f_and_g_that_are_here_score_their_own_pairs():
    pairs, checkpoints = own_models.begin("scenes", "", "", "", "")
    data, models = live.load()
    rows, f = np.sort(np.concatenate([data.subsets["pool"], data.subsets["external"]])), models["f"]
    image, text = embed_images(f, data.images, rows)[0], embed_texts(f, data.tokens[rows, 0])
    table, truth = own_models.score(pairs, checkpoints), data.table.loc[rows]
    np.testing.assert_allclose(table["similarity_f"], (image * text).sum(dim=1), atol=2e-5)
    assert table[["corruption", "caption"]].to_numpy().tolist() == truth[["corruption", "caption"]].to_numpy().tolist()
    assert np.array_equal(table["seen_g"], np.isin(rows, data.half("independent", 0))) and "clipmem" in table
