"""Keys depend on what changes numbers, and on nothing else."""

import ast
import hashlib
import json
from dataclasses import replace

import pytest
from conftest import ROOT

from lib.recipes import SCALES, VERSION, Data, Recipe, at_scale, f_and_g, key, slug

NUMERICS = (
    "captions",
    "data",
    "embeddings",
    "encoders",
    "labels",
    "memorization",
    "models",
    "objectives",
    "probes",
    "recipes",
)
NUMERICS += ("sslmem", "sweep", "train", "units", "utility")


def test_key_ignores_where_the_data_lie():
    a = Recipe(Data("flickr8k"))
    assert key(a, "x") == key(replace(a, data=replace(a.data, dataset="/elsewhere/f.parquet", image_column="img")), "x")


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 2e-3}, {"trained_on": ("shared", "independent")}])
def test_key_follows_what_changes_numbers(change):
    assert key(Recipe(), "x") != key(replace(Recipe(), **change), "x")
    assert key(Recipe(), "x") != key(Recipe(), "y")
    assert key(Recipe(), "x") != key(Recipe(Data(seed=1)), "x")


def test_f_and_g_differ_in_what_they_see_and_in_nothing_else():
    f, g = f_and_g(Recipe(), seed=4)
    assert f.trained_on == ("shared", "candidate") and g == replace(f, trained_on=("shared", "independent"))
    assert f.seed == g.seed == 4


def test_f_and_g_see_equally_many_pairs_at_every_scale():
    for scale in SCALES:
        for dataset in ("scenes", "photos.parquet"):
            data = at_scale(scale, dataset).data
            assert data.candidate == data.independent and data.dataset == dataset


def test_unknown_scale_names_the_nearest():
    with pytest.raises(ValueError, match=r"got 'laptpo'\. Did you mean 'laptop'"):
        at_scale("laptpo", "scenes")


@pytest.mark.parametrize(
    ("dataset", "short"), [("scenes", "scenes"), ("jxie/flickr8k", "flickr8k"), ("../d/a.parquet", "a")]
)
def test_slug(dataset, short):
    assert slug(dataset) == short


def test_a_change_of_numerics_raises_the_version():
    """The code that makes the numbers is recorded with the version that it was recorded under.

    Where this fails: if numbers change, raise recipes.VERSION. Then, either way, write the new record:
    `python tests/test_recipes.py`.
    """
    recorded = json.loads((ROOT / "tests" / "numerics.json").read_text())
    assert recorded == {"version": VERSION, "code": code_hashes()}, test_a_change_of_numerics_raises_the_version.__doc__


def code_hashes():
    """Hash of each room that makes numbers, comments and docstrings left out."""
    files = [ROOT / "lib" / f"{name}.py" for name in NUMERICS]
    return {path.stem: hashlib.sha256(_code(path).encode()).hexdigest()[:16] for path in files}


def _code(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return ast.unparse(tree)


if __name__ == "__main__":
    record = {"version": VERSION, "code": code_hashes()}
    (ROOT / "tests" / "numerics.json").write_text(json.dumps(record, indent=1) + "\n")
