"""A key follows what changes numbers and nothing else; a condition differs from its base in what its name says."""

import json
import re
import shutil
from dataclasses import fields, replace

import pytest

from lib import recipes
from lib.recipes import CONDITIONS, Data, Recipe, all_models, at_scale, f_and_g, key, needed_before, slug

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


@pytest.mark.parametrize("base", [SCENES, PHOTOS, replace(SCENES, remove=30, remove_by="loss")])
def test_f_and_g_differ_in_what_they_see_and_removal_trains_no_g_of_its_own(base):
    f, g = f_and_g(base, 4)
    plain_f, plain_g = f_and_g(replace(base, remove=0, remove_by=""), 4)
    assert f == replace(base, seed=4) and g == plain_g == replace(plain_f, trained_on=("shared", "independent"))
    assert f.trained_on == ("shared", "candidate") and f.data.candidate == f.data.independent
    assert needed_before(f) == ([plain_f, g] if base.remove else [])
    assert needed_before(replace(f, frozen="text"))[-1] == g and not needed_before(replace(f, remove_by="random"))


def changes(base, recipe):
    found = {name: value for name, value in vars(recipe).items() if value != getattr(base, name)}
    return {name: value for name, value in found.items() if name != "evaluations"}


@pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])
@pytest.mark.parametrize("notebook", CONDITIONS)
def test_conditions_differ_and_what_they_start_from_is_trained_anyway(notebook, base):
    conditions = CONDITIONS[notebook](base)
    differences = [str(changes(base, recipe)) for recipe in conditions.values()]
    assert next(iter(conditions.values())) == base and len(set(differences)) == len(conditions)
    planned, shared = all_models(conditions, range(3)), all_models({"CLIP": base}, range(3))
    assert len(planned) == len(set(planned)) and [recipe.seed for recipe in shared] == [0, 0, 1, 1, 2, 2, 3]
    assert {needed for recipe in planned for needed in needed_before(recipe)} <= set(shared) <= set(planned)


def test_each_intervention_on_one_encoder_has_its_twin_on_the_other():
    found = {name: changes(SCENES, recipe) for name, recipe in CONDITIONS["03_encoder_attribution"](SCENES).items()}
    assert found["image retrained"] == {"frozen": "text"} and found["text retrained"] == {"frozen": "image"}
    assert found["image noise"] == {"image_noise": 0.15} and found["text noise"] == {"text_noise": 0.15}
    assert found["narrow image tower"] == {"image_width": 0.5} and found["narrow text tower"] == {"text_width": 0.5}
    inputs = [set(change) for change in found.values()]
    assert inputs.count({"crop", "colour"}) == inputs.count({"word_dropout"}) + inputs.count({"n_captions"}) == 2


def test_mitigations_are_what_their_names_say_and_photographs_get_fewer():
    scenes, photos = (CONDITIONS["04_mitigation_utility"](base) for base in (SCENES, PHOTOS))
    assert set(photos) < set(scenes) and len(photos) < len(scenes) / 1.5
    assert {"CLIP", "5 captions", "noise before 0.15", "5% removed by clipmem", "5% removed by random"} <= set(photos)
    assert changes(PHOTOS, photos["5% removed by clipmem"]) == {"remove": 40, "remove_by": "clipmem"}
    assert [changes(SCENES, scenes[f"{n} captions"]) for n in (2, 3, 4, 5)] == [{"n_captions": n} for n in (2, 3, 4, 5)]
    assert changes(SCENES, scenes["noise before 0.3"]) == {"noise_at": "before", "text_noise": 0.3}
