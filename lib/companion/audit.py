"""Sort the pairs of a data set by how suspicious they are: `./run_all.sh --audit PAIRS`. Nothing is corrupted."""

import sys
from argparse import Namespace
from dataclasses import replace

import pandas as pd

from lib import photos, runs, scores, store
from lib.companion import figures, findings, parse
from lib.data import load, prepare
from lib.recipes import MOST, SCALES, Recipe, at_scale, f_and_g

SPEED = 50_000  # pairs per minute: 2 models at once, `small pictures, 2 cores; see README
NAMES = {"contrast_in": "in", "contrast_out": "out", "similarity_out": "held_out_similarity"}
NAMES |= {"loss_in": "early_loss", "lemon_in": "lemon"}


def plan(options: Namespace) -> dict[int, Recipe]:
    """Return a recipe for each seed. Seed s holds out tenth s mod 10; the other nine are the pool, in random halves."""
    base, columns = at_scale(options.scale, options.audit), tuple(filter(None, options.captions.split(",")))
    data = replace(base.data, shared=0, pool=MOST, test=0, probe=0, swapped=0, partly_swapped=0, inverted=0)
    data = replace(data, caption_columns=columns, image_column=options.image)
    count = min(MOST, len(load(data).images))
    data = replace(data, pool=count - count // 10, external=count // 10)
    return {seed: replace(base, data=replace(data, tenth=seed % 10)) for seed in range(options.seeds)}


def score(recipe: Recipe, seed: int, views: int) -> pd.DataFrame:
    """Return the scores of the pool pairs of one seed."""
    data = prepare(recipe.data)
    rows, both = data.subsets["pool"], f_and_g(recipe, seed)

    def measure(model, one: Recipe) -> pd.DataFrame:
        found = scores.measure(model, one, data, views)
        return found.merge(scores.single_model(model, data, rows, data.training_rows(one), views), on="pair_id")

    f, g = (runs.cached(f"audit-{views}", one, measure) for one in both)
    early = [one[one["epoch"] == one["epoch"].min()].reset_index(drop=True) for one in map(runs.evaluations, both)]
    found = scores.memorization(scores.in_out(f, g, data, seed)).set_index("pair_id")
    early_loss = scores.in_out(early[0], early[1], data, seed).set_index("pair_id")["loss_in"]
    return found[found["subset"] == "pool"].assign(loss_in=early_loss)


def audit(options: Namespace) -> None:
    """Train f and g of each seed, and write pairs.csv, the most suspicious pair first, and a wall of the first."""
    if options.seeds < 2:
        raise ValueError("--audit needs at least 2 seeds: a pair is scored only in those that do not hold it out.")
    recipes = plan(options)
    data, every = prepare(recipes[0].data), [one for seed, recipe in recipes.items() for one in f_and_g(recipe, seed)]
    about = len(every) * recipes[0].epochs * data.config.pool / 2 / SPEED
    print(f"{data.said}\n{len(every)} models, {len(runs.missing(every))} to train; all take about {about:.0f} minutes")
    runs.train_all(every)
    parts = [score(recipe, seed, SCALES[options.scale].augmentations) for seed, recipe in recipes.items()]
    grouped = pd.concat(parts)[["clipmem", *NAMES]].rename(columns=NAMES).groupby("pair_id")
    table = grouped.mean().assign(error=grouped["clipmem"].sem(), seeds=grouped.size())
    table["suspicion"] = table["in"] / 2 - table["out"]
    thumbs = pd.Series(photos.near_duplicates(list(map(photos.thumb, data.images))), data.pair_ids)
    known = data.table.reset_index().set_index("pair_id")[["row", "caption"]]
    table = table.join(known).assign(near_duplicates=thumbs).sort_values("suspicion", ascending=False)
    folder = store.root() / "audit" / findings.slug(options.audit)
    columns = ["caption", "suspicion", "clipmem", "error", "seeds", *NAMES.values(), "near_duplicates"]
    content = table[columns].rename_axis("row").to_csv(float_format="%.4f")
    store.write_bytes(folder / "pairs.csv", content.encode())
    first, titles = table.head(12), []
    for row in first.itertuples():
        titles.append(f"row {row.Index}: CLIPMem {row.clipmem:.2f} ± {row.error:.2f}")
    figures.theme()
    wall = figures.wall(data.images[first["row"]], first["caption"].tolist(), titles)
    figures.headline(wall, "The twelve most suspicious pairs", bars="")
    wall.savefig(folder / "first.png", dpi=120)
    print(f"The most suspicious pairs first: {folder / 'pairs.csv'}\nThe first twelve: {folder / 'first.png'}")


if __name__ == "__main__":
    try:
        audit(parse(sys.argv[1:]))
    except ValueError as error:  # DataError is one
        print(f"[FAIL] {error}", file=sys.stderr)
        sys.exit(2)
