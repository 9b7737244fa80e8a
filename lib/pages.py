"""What is generated from the published results in figures/: the pages that show them, and what exercises.json knows.

python -m lib.pages            exit 1 and name the pages that do not show the published results
python -m lib.pages --write    write them
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbconvert import MarkdownExporter

from lib import course, exercises, findings, report, store
from lib.recipes import PRESETS
from lib.stats import holm

OWN_MODELS = "05_your_own_models"  # shows models that others have, and is not published
TEMPLATES = Path(__file__).with_name("templates")
VERDICTS = (
    "The interval alone decides a verdict; p is adjusted for all claims of a page (Holm). *Detectable* is the least "
    "effect that so many seeds would find in 80 % of all cases. *At least N seeds*: with so many, an interval "
    "around the same value would leave out 0. [What the claims say, for all data sets](../README.md)"
)
WIDTH = 15  # characters of an interval bar
SIGNS = {"reproduced": "●", "contradicted": "○", "inconclusive": "◐", "not testable": "–"}


def claims_page() -> str:
    """Return figures/README.md: one row per claim, the data sets side by side, a table for each finding."""
    rows = findings.all_references()
    text = (TEMPLATES / "claims.md").read_text(encoding="utf-8")
    for finding, part in rows.groupby(rows["finding"].str[0]):
        sets = sorted(part["set"].unique(), key=lambda name: (name.split("-")[0] != "scenes", name != "scenes-laptop"))
        heads = ["", "claim", "the paper", *(f"[{name}]({name}/README.md)" for name in sets)]
        lines = []
        for claim, same in part.groupby("finding"):
            entry, by_set = findings.claims()[claim], same.set_index("set")
            tested = same.loc[same["verdict"] != "not testable", ["low", "value", "high"]]
            limits = [0.0, *tested.stack().dropna()]
            cells = [_cell(by_set.loc[name], min(limits), max(limits)) if name in by_set.index else "" for name in sets]
            lines.append([f'<a name="{claim}"></a>**{claim}**', entry["claim"], entry["paper"] or "—", *cells])
        text += f"\n## {'Beyond the paper' if finding == '6' else f'Finding {finding}'}\n\n{_table(heads, lines)}"
    return text


def gallery(folder: Path) -> str:
    """Return the README.md of a reference folder: each figure with its sentence and files, then every verdict."""
    rows = findings.read_reference(folder)
    rows["p"] = holm(rows["p"].where(rows["verdict"] != "not testable"))
    dataset, scale = rows["dataset"].iloc[0], rows["scale"].iloc[0]
    source = dataset if dataset in PRESETS else f"{dataset}.parquet"
    command = f"./run_all.sh {scale}" + f" --dataset {source}" * (dataset != "scenes")
    text = f"# {dataset}, scale {scale}\n\nReference results. {VERDICTS}\n"
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.json"))]
    figures.sort(key=lambda one: one["place"])
    for notebook, part in rows.groupby("notebook"):
        path = store.ROOT / "notebooks" / f"{notebook}.ipynb"
        text += f"\n## {report.title(path)}\n\n[Notebook {notebook[:2]}](../../notebooks/{notebook}.ipynb)"
        seeds, commits = part["seeds"].max(), ", ".join(sorted(set(part["commit"])))
        text += f" · {seeds} seeds · commit {commits} · repeat it: `{command} --only {notebook[:2]} --seeds {seeds}`"
        text += f" · [executed](executed/{notebook}.md)\n" * (folder / "executed" / f"{notebook}.md").exists() or "\n"
        for one in [one for one in figures if one["notebook"] == notebook]:
            text += f"\n### {one['title']}\n\n![{one['title']}]({one['figure']}.png)\n\n"
            text += f"{one['footer']} [Table]({one['figure']}.csv) · [PDF]({one['figure']}.pdf)\n"
        lines = [_details(row) for _, row in part.sort_values("finding").iterrows()]
        text += "\n### Verdicts\n\n" + _table(["", "verdict", "what decides", "value", "p", "detectable"], lines)
    return text


def _details(row: pd.Series) -> list[str]:
    reason = row["reason"]
    if row["verdict"] == "inconclusive":
        needed = row["seeds"] * ((row["high"] - row["low"]) / 2 / row["value"]) ** 2
        reason = f"at least {math.ceil(needed)} seeds" if needed < 1000 else "more than 1,000 seeds"
    p = "< .001" if row["p"] < 0.0005 else _number(row["p"])
    verdict = f"**{row['verdict']}**" + f": {reason}" * bool(reason)
    link = f"[{row['finding']}](../README.md#{row['finding']})"
    return [link, verdict, row["statistic"], _interval(row), p, _number(row["detectable"])]


def _number(value: float, digits: int = 3) -> str:
    return "—" if pd.isna(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:z.{digits}f}").replace("-", "−")


def _interval(row: pd.Series) -> str:
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _cell(row: pd.Series, low: float, high: float) -> str:
    """Return verdict, value and its interval, as numbers and as a bar on a line from `low` to `high`."""
    said = f"{SIGNS[row['verdict']]} {row['verdict']}"
    if row["verdict"] == "not testable" or row[["low", "value", "high"]].isna().any():
        return said
    place = lambda value: round((value - low) / (high - low or 1) * (WIDTH - 1))  # noqa: E731
    bar = ["\u00a0"] * WIDTH  # GitHub drops common spaces
    for position in range(place(row["low"]), place(row["high"]) + 1):
        bar[position] = "─"
    bar[place(0)], bar[place(row["value"])] = "┊", "●"
    return f"{said}<br>{_interval(row)}<br>`{''.join(bar)}`"


def _table(heads: list[str], lines: list[list[Any]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def executed_page(executed: Path, commit: str) -> str:
    """Return an executed notebook as Markdown: code folded, the pictures those that are published beside it."""
    book = report.cleaned(executed)
    book.cells = [cell for cell in book.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in book.cells:
        if cell.cell_type == "markdown":
            text = cell.source.replace("](../", "](../../../")
            text = text.replace(f"]({OWN_MODELS}.ipynb)", f"](../../../notebooks/{OWN_MODELS}.ipynb)")
            cell.source = re.sub(r"\]\((\d\w+)\.ipynb\)", r"](../../scenes-laptop/executed/\1.md)", text)
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = re.sub(r"<style.*?</style>\s*", "", output.data["text/html"], flags=re.S)
    words = (
        f"[This notebook](../../../notebooks/{executed.name}) ran at commit {commit}. Unfold a cell to see its code."
    )
    book.cells.insert(1, nbformat.v4.new_markdown_cell(words))
    where = {"extra_template_basedirs": [str(TEMPLATES.parent)], "template_name": TEMPLATES.name}
    text, _ = MarkdownExporter(template_file="executed.md.j2", **where).from_notebook_node(book)
    return re.sub(r"\n{3,}", "\n\n", text)


def summary() -> str:
    """Return README's table of the four findings, from lib/summary.json and the published tables.

    A row is shown once its first data set is published, a sentence only while its claim has the verdict that it states,
    on scenes. A level is the mean of a column over some rows of a published table, as in "02_wrong_captions",
    "member == 1", "clipmem".
    """
    verdicts, lines = findings.all_references().set_index(["set", "finding"])["verdict"], []
    for one in json.loads(Path(__file__).with_name("summary.json").read_text(encoding="utf-8")):
        cells, link = [], f"[{one['finding']}](notebooks/{one['notebook']}.ipynb)"
        if (one["sets"][0], one["decided_by"][0]) not in verdicts.index:
            continue
        for name in one["sets"]:
            if (name, one["decided_by"][0]) not in verdicts.index:
                cells.append("not run")
                continue
            levels = {}
            for level, (table, which, column) in one["levels"].items():
                rows = pd.read_csv(store.ROOT / "figures" / name / f"{table}.csv").query(which)
                levels[level] = _number(rows[column].mean(), 2)
            cells.append(f"[{one['ours'].format(**levels)}](figures/{name}/README.md)")
        held = {verdicts.get((one["sets"][0], claim)) for claim in one["decided_by"]}
        said = ["**● yes**" if held == {"reproduced"} else "**○ no**" if "reproduced" not in held else "**◐ partly**"]
        for claim, sentences in one["sentences"].items():
            scenes, photographs = (verdicts.get((name, claim)) for name in one["sets"])
            if scenes in sentences:
                other = f" ({one['sets'][1].partition('-')[0]}: {photographs})"
                said.append(sentences[scenes] + {None: " (tested on scenes alone)", scenes: ""}.get(photographs, other))
        lines.append([link, one["says"], one["paper"], *cells, "; ".join(said)])
    heads = ["", "the paper says", "the paper", "ours, drawn scenes", "ours, photographs", "did it hold?"]
    return _table(heads, lines)


def _measured(name: str) -> str:
    """Return a table of figures/benchmark."""
    rows = pd.read_csv(store.ROOT / "figures" / "benchmark" / f"{name}.csv", keep_default_na=False, dtype=str)
    return _table(list(rows), rows.to_numpy().tolist())


def pages() -> dict[Path, str]:
    """Return every file that is made from the published tables: path -> text."""
    readme = store.ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name in ("findings", "times", "agreement", "own_models"):
        table = summary() if name == "findings" else _measured(name)
        start = f"<!-- {name}: python -m lib.pages --write -->\n"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    made = {readme: text, store.ROOT / "figures" / "README.md": claims_page()}
    for path in sorted(store.ROOT.glob("figures/*/findings.json")):
        made[path.with_name("README.md")] = gallery(path.parent)
    known = json.dumps(course.exercises_json(), indent=1, sort_keys=True, ensure_ascii=False)
    return made | {exercises.KNOWN: f"{known}\n"}


def publish(dataset: str, scale: str, executed: Sequence[Path]) -> None:
    """Write all pages, after `findings.publish`. Executed notebooks become pages where all captions are our own."""
    folder = findings.reference_folder(dataset, scale)
    known = findings.read_reference(folder)
    for path in [path for path in executed if dataset == "scenes" and path.stem != OWN_MODELS]:
        own = known[known["notebook"] == path.stem]
        commit = ", ".join(sorted(set((own if len(own) else known)["commit"])))  # the tour shows all of them
        store.write_bytes(folder / "executed" / f"{path.stem}.md", executed_page(path, commit).encode())
    for path, text in pages().items():
        store.write_bytes(path, text.encode())


if __name__ == "__main__":
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    if "--write" in sys.argv[1:]:
        for path, text in stale.items():
            store.write_bytes(path, text.encode())
    elif stale:
        sys.exit(f"stale: {', '.join(map(str, stale))}; run: python -m lib.pages --write")
