"""Sort the pairs of a data set by how suspicious they are: `./run_all.sh --audit PAIRS`. Nothing is corrupted."""

import os
import sys
from argparse import Namespace
from dataclasses import replace

import pandas as pd

from lib import photos, runs, scores, store
from lib.companion import entries, figures, findings, parse
from lib.data import load, prepare
from lib.recipes import MOST, SCALES, Recipe, at_scale, f_and_g

SPEED = 26_000  # pairs that two models at once see in a minute, at scale laptop on two cores: measured with Flickr8k
NAMES = {"clipmem": "clipmem", "contrast_in": "in", "contrast_out": "out", "similarity_out": "held_out_similarity"}
NAMES |= {"loss_in": "early_loss", "lemon_in": "lemon"}


def plan(options: Namespace) -> dict[int, Recipe]:
    """Return a recipe for each seed. Seed s holds out tenth s mod 10; the other nine are the pool, in random halves."""
    base = at_scale(options.scale, options.audit)
    data = replace(base.data, shared=0, pool=MOST, test=0, probe=0, swapped=0, partly_swapped=0, inverted=0)
    data = replace(data, caption_columns=tuple(entries(options.captions)), image_column=options.image)
    count = min(MOST, len(load(data).images))
    if options.seeds < 2 or count < 100:
        raise ValueError("--audit needs at least 2 seeds and 100 different pictures, better 10 and some thousand")
    data = replace(data, pool=count - count // 10, external=count // 10)
    return {seed: replace(base, data=replace(data, tenth=seed % 10)) for seed in range(options.seeds)}


def score(recipe: Recipe, seed: int, views: int) -> pd.DataFrame:
    """Return the scores of the pool pairs of one seed, by the names of `pairs.csv`."""
    data, both = prepare(recipe.data), f_and_g(recipe, seed)

    def measure(model, one: Recipe) -> pd.DataFrame:
        others = scores.single_model(model, data, data.subsets["pool"], data.training_rows(one), views)
        return scores.measure(model, one, data, views).merge(others, on="pair_id")

    f, g = (runs.cached(f"audit-{views}", one, measure) for one in both)
    early = [one[one["epoch"] == one["epoch"].min()].reset_index(drop=True) for one in map(runs.evaluations, both)]
    found = scores.memorization(scores.in_out(f, g, data, seed)).set_index("pair_id")
    found["loss_in"] = scores.in_out(early[0], early[1], data, seed).set_index("pair_id")["loss_in"]
    found["loss_in"] -= found.groupby("member")["loss_in"].transform("mean")  # one model may lose more on all pairs
    return found[[*NAMES]].rename(columns=NAMES)


def audit(options: Namespace) -> None:
    """Train f and g of each seed, and write pairs.csv, the most suspicious pair first, and a wall of the first."""
    recipes = plan(options)
    data, every = prepare(recipes[0].data), [one for seed, recipe in recipes.items() for one in f_and_g(recipe, seed)]
    minutes = len(absent := runs.missing(every)) * recipes[0].epochs * data.config.pool / 2 / SPEED
    print(f"{data.said}; only the first caption of a picture is used\n{len(absent)} of {len(every)} models to train,")
    print(f"at scale laptop and on two cores in about {minutes:.0f} minutes", flush=True)
    runs.train_all(every)
    parts = [score(one, seed, SCALES[options.scale].augmentations) for seed, one in recipes.items()]
    table = (of := pd.concat(parts).groupby("pair_id")).mean().assign(seeds=of.size())
    table["error"] = (of["clipmem"].var().mean() / table["seeds"]) ** 0.5  # few seeds: one variance for all pairs
    table["near_duplicates"] = pd.Series(photos.near_duplicates([*map(photos.thumb, data.images)]), data.pair_ids)
    known = data.table.reset_index().set_index("pair_id")[["row", "caption"]]
    table = known.join(table, how="inner").sort_values("early_loss", ascending=False).rename_axis("row_in_file")
    folder = store.root() / "audit" / f"{findings.slug(os.path.abspath(options.audit))}-{options.scale}"
    store.write_bytes(folder / "pairs.csv", table.drop(columns="row").to_csv(float_format="%.4f").encode())
    figures.theme()
    first, titles = table.head(12), [f"row {row.Index}: {row.early_loss:+.2f}" for row in table.head(12).itertuples()]
    wall = figures.wall(data.images[first["row"]], first["caption"].tolist(), titles)
    figures.headline(wall, "The twelve most suspicious pairs", bars="")
    wall.savefig(folder / "first.png", dpi=120)
    print(f"The most suspicious pairs first: {folder / 'pairs.csv'}\nThe first twelve: {folder / 'first.png'}")


if __name__ == "__main__":
    try:
        audit(parse(sys.argv[1:]))
    except (ValueError, OSError, KeyboardInterrupt) as error:  # DataError is one
        print(f"[FAIL] {error or 'stopped: the same command continues'}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)
