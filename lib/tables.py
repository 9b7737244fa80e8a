"""From trained models to tidy tables: scores by pair, curves along training; what was computed once is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from open_clip.model import CLIP

from lib import memorization, sslmem, store, sweep
from lib.data import Prepared
from lib.recipes import Recipe, f_and_g, key

ALL = memorization.SUBSETS
TRUTH = ["pair_id", "kind", "dose", "vagueness", "rarity"]


def kept(name: str, recipe: Recipe, prepared: Prepared, make: Callable[[CLIP], pd.DataFrame]) -> pd.DataFrame:
    """`make(model)` for a recipe's model, kept in the store beside the run under `name`."""

    def build(folder):
        store.write_table(folder / "table.parquet", make(sweep.load(recipe, prepared)))

    run_key = key(recipe, prepared.fingerprint)
    folder = store.obtain("score", f"{run_key}-{name}", {"run": run_key, "name": name}, build)
    return pd.read_parquet(folder / "table.parquet")


def measured(recipe: Recipe, prepared: Prepared, augmentations: int, subsets: Sequence[str] = ALL) -> pd.DataFrame:
    """`memorization.measure` of a recipe's model, kept."""

    def make(model: CLIP) -> pd.DataFrame:
        return memorization.measure(model, recipe.objective, prepared, augmentations, subsets)

    return kept("-".join([f"views{augmentations}", *(s[0] for s in subsets)]), recipe, prepared, make)


def scores(
    base: Recipe,
    seeds: Sequence[int],
    prepared: Prepared,
    augmentations: int,
    null: Recipe | None = None,
    subsets: Sequence[str] = memorization.MOST_READ,
) -> pd.DataFrame:
    """Memorization of every pair of `subsets` under every seed.

    Returns:
        One row a (seed, pair): seed, pair_id, subset, kind, dose, vagueness, rarity (ground truth, NaN where unknown);
        under `caption`: clipmem (raw, contrast), clipmem_plain, clipmem_normalised, similarity_f, similarity_g, loss_f,
        and, with a `null` model, null (f against it); under `label`: labelmem; under `view`: sslmem_image.
    """
    models = [r for seed in seeds for r in f_and_g(base, seed)] + ([null] if null else [])
    sweep.each(f"score {len(models)} models", lambda r, note: measured(r, prepared, augmentations, subsets), models)
    parts = []
    for seed in seeds:
        of_f, of_g = (measured(r, prepared, augmentations, subsets) for r in f_and_g(base, seed))
        part = of_f[["pair_id", "subset"]].assign(seed=seed, **_differences(of_f, of_g))
        if null:
            part["null"] = memorization.clipmem(of_f, measured(null, prepared, augmentations, subsets))
        parts.append(part)
    return pd.concat(parts, ignore_index=True).merge(prepared.table[TRUTH], on="pair_id", validate="many_to_one")


def _differences(of_f: pd.DataFrame, of_g: pd.DataFrame) -> dict[str, pd.Series]:
    """What f and g differ in, and the free scores; every score is high where f knows more of a pair than g."""
    found = {}
    if "contrast" in of_f:
        raw = memorization.clipmem(of_f, of_g)
        found = {"clipmem": raw, "clipmem_plain": memorization.clipmem(of_f, of_g, "plain")}
        found["clipmem_normalised"] = memorization.range_normalised(raw, of_f["subset"] == "candidate")
        found |= {"similarity_f": of_f["similarity"], "similarity_g": of_g["similarity"], "loss_f": of_f["loss"]}
    if "probability" in of_f:
        found["labelmem"] = of_f["probability"] - of_g["probability"]
    if "distance_image" in of_f:
        found["sslmem_image"] = of_g["distance_image"] - of_f["distance_image"]
    return found


def sslmem_by_encoder(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """SSLMem of every candidate under every seed: one row a (seed, pair): seed, pair_id, sslmem_image, sslmem_text."""
    rows = prepared.subsets["candidate"]

    def of(recipe: Recipe) -> pd.DataFrame:
        return kept("encoders", recipe, prepared, lambda model: sslmem.by_encoder(model, prepared, rows))

    models = [r for seed in seeds for r in f_and_g(base, seed)]
    found, parts = sweep.each(f"encoders of {len(models)} models", lambda r, note: of(r), models), []
    for seed, of_f, of_g in zip(seeds, found[::2], found[1::2], strict=True):
        columns = {f"sslmem_{name}": of_g[name] - of_f[name] for name in ("image", "text")}
        parts.append(of_f[["pair_id"]].assign(seed=seed, **columns))
    return pd.concat(parts, ignore_index=True)


def along_training(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """CLIPMem of candidates and external pairs along training: one row a (seed, epoch, pair), pictures as they are.

    Returns:
        seed, epoch, pair_id, subset, kind, clipmem (raw, contrast).
    """
    parts = []
    for seed in seeds:
        f, g = (pd.read_parquet(sweep.run(r, prepared) / "looks.parquet") for r in f_and_g(base, seed))
        both = f.merge(g, on=["epoch", "pair_id", "subset"], suffixes=("_f", "_g"), validate="one_to_one")
        part = both[["epoch", "pair_id", "subset"]].assign(seed=seed)
        parts.append(part.assign(clipmem=both["contrast_f"] - both["contrast_g"]))
    truth = prepared.table[["pair_id", "kind"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def histories(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """Loss, learning rate and retrieval by epoch of f and g of every seed (columns: seed, role, epoch, ...)."""
    parts = []
    for seed in seeds:
        for role, recipe in zip("fg", f_and_g(base, seed), strict=True):
            parts.append(pd.read_parquet(sweep.run(recipe, prepared) / "history.parquet").assign(seed=seed, role=role))
    return pd.concat(parts, ignore_index=True)
