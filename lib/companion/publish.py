"""The reference in figures/: copied from a run, and the pages that show it (`python -m lib.companion.publish`)."""

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader
from nbconvert import MarkdownExporter

from lib import store
from lib.companion import findings
from lib.photos import PRESETS

MIN_SEEDS = 3  # the fewest that are published: the paper's own number
ENDINGS = (".png", ".pdf", ".csv", ".json")  # the files of a figure
CHANGES = {r"\]\(\.\./": "](../../../", r"\n{3,}": "\n\n"}  # of an executed notebook: its links lead from notebooks/
CHANGES[r"\]\((\d\w+)\.ipynb\)"] = r"](../../scenes-laptop/executed/\1.md)"
# Of tables of scores, the columns that no figure and no claim reads, so that they are not published
UNREAD = {"pairs-po-ex": ["similarity", "loss"], "evaluations": ["probability", "distance_image"]}
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)


def title(notebook: Path) -> str:
    """Return the title of a notebook, the first line of its first cell."""
    return nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")


def refusal(scale: str, seeds: int, commit: str) -> str:
    """Return why results may not become the reference, or "" where they may."""
    if scale == "smoke":
        return "smoke decides nothing, so it is not published: use laptop or a larger scale."
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds are too few to publish: use at least {MIN_SEEDS}."
    if commit == "unknown" or commit.endswith("+"):
        return f"lib/ or notebooks/ differ from commit {commit}: commit first, so that the reference names its code."
    return ""


def publish(dataset: str, scale: str, notebooks: Sequence[str], executed: Path) -> Path:
    """Replace what the reference has of these notebooks, write the pages, and return the reference's folder. Raise
    ValueError where results may not be published, or the folder holds another data set of the same name."""
    own, reference = findings.results_folder(dataset, scale), findings.reference_folder(dataset, scale)
    found = [findings.read_json(own / f"{name}.json") for name in notebooks]
    found = [result for result in found if result["figures"] or result["findings"]]
    about = [result["about"] for result in found]
    for one in [result["about"] for result in found if result["findings"]]:
        if reason := refusal(scale, one["seeds"], one["commit"]):
            raise ValueError(f"{one['notebook']}: {reason}")
    stale = [path for one in about for path in reference.glob(f"{one['notebook'][:2]}_*")]
    others = {findings.read_json(path)["data"] for path in reference.glob("[0-9]*.json") if path not in stale}
    if dataset != "scenes" and len(others | {one["data"] for one in about}) > 1:  # there is one world, drawn anew
        raise ValueError(f"{reference} holds results of other data with this name: delete it, or rename the data.")
    for path in stale:
        path.unlink()
    for file in [f"{figure}{ending}" for result in found for figure in result["figures"] for ending in ENDINGS]:
        store.write_bytes(reference / file, (own / file).read_bytes())
    path, names = reference / "findings.json", [one["notebook"] for one in about]
    rows = [row for row in findings.read_json(path) if row["notebook"] not in names] if path.is_file() else []
    rows += [row for result in found for row in result["findings"]]
    rows = [row for row in rows if "withdrawn" not in findings.claims()[row["finding"]]]
    store.write_json(path, findings.adjust(sorted(rows, key=lambda row: (row["notebook"], row["finding"]))))
    models = [model | {n: one["about"][n] for n in ("notebook", "commit")} for one in found for model in one["models"]]
    store.publish(reference / "scores", models, UNREAD)
    for path in own.glob("data-*.parquet"):
        store.write_bytes(reference / "scores" / path.name, path.read_bytes())
    for name in notebooks if dataset == "scenes" else ():  # captions of our own
        text = executed_page(executed / f"{name}.ipynb")
        store.write_bytes(reference / "executed" / f"{name}.md", text.encode())
    for page, text in pages().items():
        store.write_bytes(page, text.encode())
    return reference


def pages() -> dict[Path, str]:
    """Return the generated pages, by path: figures/README.md, with all claims, and the page of each data set."""
    rows, both = findings.all_references().to_dict("records"), ("scenes-laptop", "flickr8k-laptop")
    told = {"rows": rows, "claims": findings.claims(), "both": both, "agreement": findings.agreement(*both)}
    own = {path.with_name("README.md"): gallery(path.parent) for path in store.ROOT.glob("figures/*/findings.json")}
    return {store.ROOT / "figures" / "README.md": TEMPLATES.get_template("claims.md.j2").render(told), **own}


def gallery(folder: Path) -> str:
    """Return the README.md of a reference folder: every verdict, and each figure with its files."""
    told = {"rows": findings.read_reference(folder).sort_values("finding"), "known": ("scenes", *PRESETS)}
    models = findings.read_json(index)["models"] if (index := folder / "scores" / "index.json").is_file() else []
    told |= {"claims": findings.claims(), "trained": {one["notebook"]: one["commit"] for one in models}}
    told["titles"] = {path.stem: title(path) for path in store.ROOT.glob("notebooks/*.ipynb")}
    told["executed"] = {path.stem for path in folder.glob("executed/*.md")}
    told["figures"] = [findings.read_json(path) for path in folder.glob("[0-9]*.json")]
    return TEMPLATES.get_template("gallery.md.j2").render(told)


def executed_page(executed: Path) -> str:
    """Return an executed notebook as Markdown, with the links that lead from there."""
    template = Path(__file__).with_name("executed.md.j2")
    text, _ = MarkdownExporter(template_file=str(template)).from_filename(str(executed))
    for pattern, new in CHANGES.items():
        text = re.sub(pattern, new, text)
    return text


if __name__ == "__main__":
    for page, text in pages().items():
        store.write_bytes(page, text.encode())
