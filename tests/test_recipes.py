"""A key follows what changes numbers and nothing else; a condition differs from its base in what its name says."""

import shutil
from dataclasses import fields, replace

import pytest

from lib import recipes
from lib.recipes import CONDITIONS, WRONG, DataConfig, Recipe, all_models, at_scale, depends_on, f_and_g, key

MORE = {str: "x", int: 1, float: 1.0, tuple: ("x",)}  # what is added to a value to give another one
SCENES, PHOTOS = at_scale("laptop", "scenes"), at_scale("laptop", "photos.parquet")
both = pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])


def others(thing):
    """Return, by field, the recipe or data in which only that field has another value."""
    values = {field.name: getattr(thing, field.name) for field in fields(thing) if field.name != "data"}
    return {n: replace(thing, **{n: "scenes" if n == "model" else v + MORE[type(v)]}) for n, v in values.items()}


def changes(base, recipe):
    return {n: v for n, v in vars(recipe).items() if v != getattr(base, n) and n != "evaluations"}


def test_the_key_follows_every_field_but_those_that_say_where_the_data_are():
    changed = others(Recipe()) | {f"data {name}": Recipe(data) for name, data in others(DataConfig()).items()}
    keys, plain = {name: key(one, "a", "fp32") for name, one in changed.items()}, key(Recipe(), "a", "fp32")
    same = [name for name, own in keys.items() if own == plain]
    assert same == [f"data {name}" for name in ("dataset", "image_column", "caption_columns")]
    assert len({*keys.values()}) == len(keys) - 2


def test_the_key_follows_data_precision_version_and_the_models_json(tmp_path, monkeypatch):
    keys = [key(Recipe(), *where) for where in (("a", "fp32"), ("b", "fp32"), ("a", "bf16"))]
    monkeypatch.setattr(recipes, "MODELS", shutil.copytree(recipes.MODELS, tmp_path / "models"))
    path = recipes.MODELS / "laptop.json"
    path.write_text(path.read_text().replace('"layers": 4', '"layers": 5'))
    keys.append(key(Recipe(), "a", "fp32"))
    monkeypatch.setattr(recipes, "VERSION", recipes.VERSION + 1)
    assert len({*keys, key(Recipe(), "a", "fp32")}) == 5


def test_towers_are_as_wide_as_asked_and_unknown_scales_are_refused():
    wide = recipes.model_config("scenes", 2.0)
    assert wide["vision_cfg"]["width"] == wide["text_cfg"]["width"] == 192
    with pytest.raises(ValueError, match=r"expected one of smoke, .*got 'laptpo'"):
        at_scale("laptpo", "scenes")


def test_f_and_g_differ_only_in_their_half_of_the_pool():
    f, g = f_and_g(SCENES, 4)
    assert f == replace(SCENES, seed=4, trained_on=("shared", "candidate"))
    assert g == replace(f, trained_on=("shared", "independent")) and f_and_g(g, 4) == (f, g)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_removal_is_ranked_by_another_seed_and_a_donor_saw_neither_half(seed):
    base = replace(SCENES, seed=seed)
    removal = replace(base, remove=0.4, remove_by="clipmem", epochs=25)  # 15 / (1 - .4)
    f, g = depends_on(removal)
    assert f.seed == g.seed != seed and (f, g) == f_and_g(SCENES, f.seed)
    assert not any(depends_on(replace(removal, remove_by=rule)) for rule in ("random", "oracle"))
    (donor,), (other,) = map(depends_on, f_and_g(replace(SCENES, frozen="image"), seed))
    assert donor == other == replace(base, trained_on=("shared",), evaluations=1) and not depends_on(base)


@both
@pytest.mark.parametrize("notebook", CONDITIONS)
def test_conditions_differ_and_what_they_depend_on_is_planned(notebook, base):
    conditions = CONDITIONS[notebook](base)
    assert next(iter(conditions.values())) == base and len(set(conditions.values())) == len(conditions)
    planned, plain = all_models(conditions, range(3)), all_models({"CLIP": base}, range(3))
    assert len(planned) == len(set(planned)) and [recipe.seed for recipe in plain] == [0, 0, 1, 1, 2, 2]
    assert {needed for recipe in planned for needed in depends_on(recipe)} | set(plain) <= set(planned)
    assert all(recipe.trained_on != ("shared", "independent") for recipe in planned if recipe.remove)  # f only


@both
def test_interventions_and_mitigations_are_what_their_names_say(base):
    attribution, found = (CONDITIONS[name](base) for name in ("03_encoder_attribution", "04_mitigation_utility"))
    disturbed = {"image augmented": dict(crop=0.5, color_jitter=0.2), "tokens dropped": {"token_dropout": 0.1}}
    disturbed["text noise 0.2"] = {"text_noise": 0.2}  # both notebooks have these three
    named = {"CLIP": {}, **disturbed, "image noise 0.2": {"image_noise": 0.2}}
    if base is SCENES:
        named["image retrained"], named["text retrained"] = (dict(frozen=one, epochs=30) for one in ("text", "image"))
    assert {name: changes(base, one) for name, one in attribution.items()} == named
    named = {**disturbed, "5 captions": {"n_captions": 5}, "text noise 0.5": {"text_noise": 0.5}}
    named |= {f"CLIP, {epochs} epochs": {"epochs": epochs} for epochs in (3, 6)}
    if base is SCENES:  # each model sees 2,000 pairs: five times as many, for a fifth of the epochs
        named["10,000 pairs, 3 epochs"] = {"data": replace(base.data, shared=9400), "epochs": 3}
        named |= {"CLIP, 30 epochs": {"epochs": 30}, "5 captions, 30 epochs": dict(n_captions=5, epochs=30)}
        long = {name: one for name, one in found.items() if "30 epochs" in name}
        assert [one.trained_on[1] for one in all_models(long, [0])] == ["candidate"] * 2, "of the longest, f alone"
    assert {name: changes(base, found[name]) for name in named} == named
    assert {name for name in set(found) - set(named) if "noisy" not in name} <= {"CLIP", "oracle"}
    noisy = found["noisy"]
    assert [*changes(base, noisy)] == ["data"] and noisy.data.shared == 0 and noisy.data.swapped == WRONG
    for rule in ("clipmem", "random", "oracle"):
        removal = found[f"noisy, {rule}"]
        assert set(changes(noisy, removal)) == {"remove", "remove_by", "epochs"}
        steps = [one.epochs * (1 - one.remove) * noisy.data.pool // 2 // one.batch for one in (noisy, removal)]
        assert steps[1] == pytest.approx(steps[0], rel=0.03)  # fewer pairs, more often


@pytest.mark.parametrize(("base", "sizes"), [(SCENES, {8000: 4, 30_000: 1}), (PHOTOS, {950: 48, 1900: 24})])
def test_sizes_take_as_many_steps_as_clip_and_photographs_suffice(base, sizes):
    found = CONDITIONS["06_beyond_clip"](base)
    sized = [one for name, one in found.items() if " pairs, " in name]
    assert {one.data.shared + one.data.pool // 2: one.epochs for one in sized} == sizes
    steps = [(one.data.shared + one.data.pool // 2) // one.batch * one.epochs for one in (base, *sized)]
    assert steps == pytest.approx([steps[0]] * 3, rel=0.11) and all(one.data.pool == base.data.pool for one in sized)
    most = max(sum(recipe.data.sizes().values()) for recipe in found.values())
    assert base is SCENES or most == sum(PHOTOS.data.sizes().values())
