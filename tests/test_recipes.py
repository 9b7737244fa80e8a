"""A key follows what changes numbers and nothing else; a condition differs from its base in what its name says."""

import json
import re
import shutil
from dataclasses import fields, replace

import pytest

from lib import conditions as compared
from lib import recipes
from lib.conditions import CONDITIONS
from lib.recipes import Data, Recipe, all_models, at_scale, f_and_g, key, needed_before, slug

MORE = {str: "x", int: 1, float: 1.0, tuple: ("x",)}  # added to a value it gives another one
SCENES, PHOTOS = at_scale("laptop", "scenes"), at_scale("laptop", "photos.parquet")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A copy of lib/models with one model more."""
    folder = shutil.copytree(recipes.MODELS, tmp_path / "models")
    shutil.copy(folder / "laptop.json", folder / "laptopx.json")
    monkeypatch.setattr(recipes, "MODELS", folder)
    return folder


def others(thing):
    """Return by field the recipe, or data, in which that field alone has another value."""
    values = {field.name: getattr(thing, field.name) for field in fields(thing) if field.name != "data"}
    return {name: replace(thing, **{name: value + MORE[type(value)]}) for name, value in values.items()}


def test_the_key_follows_every_field_but_those_that_say_where_the_data_lie(models):
    changed = others(Recipe()) | {f"data {name}": Recipe(data) for name, data in others(Data()).items()}
    keys = {name: key(recipe, "print", "fp32") for name, recipe in changed.items()}
    same = {name for name, own in keys.items() if own == key(Recipe(), "print", "fp32")}
    assert same == {"data dataset", "data image_column", "data caption_columns"}
    assert len(set(keys.values())) == len(keys) - 2 and all(re.fullmatch("[0-9a-f]{16}", own) for own in keys.values())


def test_the_key_follows_data_precision_version_and_what_the_models_json_says(models, monkeypatch):
    base, path = key(Recipe(), "print", "fp32"), models / "laptop.json"
    assert len({base, key(Recipe(), "other", "fp32"), key(Recipe(), "print", "bf16")}) == 3
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=8))
    assert key(Recipe(), "print", "fp32") == base
    config["vision_cfg"]["head_width"] *= 2
    path.write_text(json.dumps(config))
    edited = key(Recipe(), "print", "fp32")
    monkeypatch.setattr(recipes, "VERSION", recipes.VERSION + 1)
    assert len({base, edited, key(Recipe(), "print", "fp32")}) == 3


def test_every_data_set_has_folders_of_its_own_and_unknown_scales_are_refused(tmp_path, monkeypatch):
    for name in ("a/photos.parquet", "b/photos.parquet", "scenes.parquet", "flickr8k.parquet", "photos.v2.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [str(path) for path in tmp_path.rglob("*.parquet")]
    names = [*files, "scenes", "flickr8k", "owner/photos", "other/photos", "..", "~nobody/x", "x" * 300]
    slugs = {name: slug(name) for name in names}
    assert len(set(slugs.values())) == len(names) and all(re.fullmatch(r"[\w-]+", own) for own in slugs.values())
    assert slugs["scenes"] == "scenes" and slugs["flickr8k"] == "flickr8k"
    monkeypatch.chdir(tmp_path)
    assert slug("a/photos.parquet") == slug("b/../a/photos.parquet") == slugs[str(tmp_path / "a/photos.parquet")]
    assert {recipes.published_name(name) for name in files} == {"photos", "scenes", "flickr8k", "photos-v2"}
    with pytest.raises(ValueError, match=r"expected one of smoke.*got 'laptpo'\. Did you mean 'laptop'\?$"):
        at_scale("laptpo", "scenes")


@pytest.mark.parametrize("base", [SCENES, PHOTOS])
def test_f_and_g_differ_in_the_half_of_the_pool_alone(base):
    f, g = f_and_g(base, 4)
    assert f == replace(base, seed=4, trained_on=("shared", "candidate"))
    assert g == replace(f, trained_on=("shared", "independent")) and f_and_g(g, 4) == (f, g)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_removal_is_ranked_by_f_and_g_of_another_seed_with_as_many_steps_as_without(seed):
    base = replace(SCENES, seed=seed)
    removal = replace(base, remove=0.4, remove_by="clipmem", epochs=25)  # 15 / (1 - .4)
    f, g = needed_before(removal)
    assert f.seed == g.seed != seed and (f, g) == f_and_g(SCENES, f.seed)
    assert not needed_before(replace(removal, remove_by="random"))
    assert not needed_before(replace(removal, remove_by="oracle")) and not needed_before(base)


def test_the_donor_of_a_frozen_tower_saw_neither_half():
    (donor,), (other,) = map(needed_before, f_and_g(replace(SCENES, frozen="image"), 3))
    assert donor == other == replace(SCENES, trained_on=("shared",), seed=3, evaluations=1)


def changes(base, recipe):
    found = {name: value for name, value in vars(recipe).items() if value != getattr(base, name)}
    return {name: value for name, value in found.items() if name != "evaluations"}


@pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])
@pytest.mark.parametrize("notebook", CONDITIONS)
def test_conditions_differ_and_what_they_start_from_is_planned(notebook, base):
    conditions = CONDITIONS[notebook](base)
    differences = [str(changes(base, recipe)) for recipe in conditions.values()]
    assert next(iter(conditions.values())) == base and len(set(differences)) == len(conditions)
    planned, shared = all_models(conditions, range(3)), all_models({"CLIP": base}, range(3))
    assert len(planned) == len(set(planned)) and [recipe.seed for recipe in shared] == [0, 0, 1, 1, 2, 2]
    assert {needed for recipe in planned for needed in needed_before(recipe)} | set(shared) <= set(planned)
    f_alone = [recipe for recipe in planned if recipe.remove and not recipe.finetuned]
    assert all(recipe.trained_on != ("shared", "independent") for recipe in f_alone)


def test_each_intervention_on_one_encoder_has_its_twin_on_the_other():
    conditions = CONDITIONS["03_encoder_attribution"](SCENES)
    found = {name: changes(SCENES, recipe) for name, recipe in conditions.items()}
    twice = 2 * SCENES.epochs
    assert found["image retrained"] == {"frozen": "text", "epochs": twice}
    assert found["text retrained"] == {"frozen": "image", "epochs": twice}
    assert found["image noise 0.5"] == {"image_noise": 0.5} and found["text noise 0.5"] == {"text_noise": 0.5}
    assert set(found["image augmented"]) == {"crop", "colour"} and set(found["words dropped"]) == {"word_dropout"}
    assert [*CONDITIONS["03_encoder_attribution"](PHOTOS)] == ["CLIP"]


@pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])
def test_mitigations_are_what_their_names_say(base):
    found = CONDITIONS["04_mitigation_utility"](base)
    assert changes(base, found["5 captions"]) == {"n_captions": 5}
    assert changes(base, found["a fifth of the epochs"]) == {"epochs": round(base.epochs / 5)}
    assert changes(base, found["text noise 0.5"]) == {"text_noise": 0.5}
    noisy = found["noisy"]
    assert set(changes(base, noisy)) == {"data"} and noisy.data.shared == 0 and noisy.data.swapped == compared.WRONG
    for rule in ("clipmem", "random", "oracle"):
        recipe = found[f"noisy, {rule}"]
        change = {"remove": compared.WRONG, "remove_by": rule, "epochs": round(noisy.epochs / (1 - compared.WRONG))}
        assert changes(noisy, recipe) == change
        rows = noisy.data.pool // 2  # the same number of steps: fewer pairs, more often
        steps = [r.epochs * (round(rows * (1 - r.remove)) // r.batch) for r in (noisy, recipe)]
        assert steps[1] == pytest.approx(steps[0], rel=0.03)


def test_sizes_take_no_more_steps_than_clip_and_end_with_a_single_pass_of_as_many():
    conditions = CONDITIONS["06_beyond_clip"](SCENES)
    visits = lambda r: (r.data.shared + r.data.pool // 2) * r.epochs  # noqa: E731
    sized = {name: recipe for name, recipe in conditions.items() if " pairs, " in name}
    assert all(
        visits(recipe) <= 1.1 * visits(SCENES) and recipe.data.pool == SCENES.data.pool for recipe in sized.values()
    )
    last = [*sized.values()][-1]
    assert last.epochs == 1 and visits(last) == visits(SCENES)
    photos = CONDITIONS["06_beyond_clip"](PHOTOS)
    assert max(sum(recipe.data.sizes().values()) for recipe in photos.values()) == sum(PHOTOS.data.sizes().values())


def test_what_came_later_to_a_recipe_changes_no_older_key():
    assert key(SCENES, "data", "fp32") == "7f0f8d8a4ca84e22"
    changes = {"width": 2.0, "depth": 2.0, "finetuned": 3, "regrouped": 0.05}
    later = [replace(SCENES, **{name: value}) for name, value in changes.items()]
    assert (
        changes.keys() == recipes.LATER.keys()
        and len({key(recipe, "data", "fp32") for recipe in [SCENES, *later]}) == 5
    )


def test_towers_are_as_wide_and_as_deep_as_asked():
    for factor, widths, layers in ((2.0, [192, 192], [8, 6]), (0.5, [48, 48], [2, 2])):
        config = recipes.model_config("scenes", width=factor, depth=factor)
        towers = config["vision_cfg"], config["text_cfg"]
        assert [tower["width"] for tower in towers] == widths and [tower["layers"] for tower in towers] == layers


def test_fine_tuning_starts_from_the_model_before_removal_and_other_seeds_say_what_to_remove():
    found = CONDITIONS["06_beyond_clip"](SCENES)
    start, f, g = needed_before(replace(found["noisy, fine-tuned"], seed=2))
    assert start == replace(found["noisy"], seed=2) and [f, g] == [*f_and_g(found["noisy"], 1)]
    assert needed_before(found["noisy, regrouped"]) == [*f_and_g(found["noisy"], 1)]


def test_photographs_get_fewer_conditions_and_use_no_more_pairs_than_there_are():
    scenes, photos = (CONDITIONS["04_mitigation_utility"](base) for base in (SCENES, PHOTOS))
    assert set(photos) < set(scenes) and len(photos) < len(scenes) / 1.5
    assert sum(photos["noisy"].data.sizes().values()) == sum(PHOTOS.data.sizes().values())
