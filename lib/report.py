"""The report of a run, laid out by lib/templates/: an index with the verdicts and all figures, and a page per notebook.

The folder `runs/report/<set>/` can be copied anywhere. Its pages run no script and fetch nothing from a network.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import mistune
import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from lib import findings, store
from lib.recipes import published_name

TEMPLATES = Path(__file__).with_name("templates")
PROGRESS = "[....]"  # lines of a notebook's output that begin so are also shown on the terminal
READ_AFTER = {"01": "02"}  # 02 explains what 01 needs; all other notebooks are read in the order of their numbers


def title(notebook: Path) -> str:
    """Return the title of a notebook, the first line of its first cell, else its name."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(cells[0].source.splitlines()[:1]).lstrip("# ") if cells else notebook.stem


def cleaned(executed: Path) -> NotebookNode:
    """Return an executed notebook without progress lines, and without the defaults that papermill's cell replaced."""
    book = nbformat.read(executed, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in book.cells]
    if ["injected-parameters"] in tags:
        book.cells = [cell for cell, own in zip(book.cells, tags, strict=True) if "parameters" not in own]
    for output in [output for cell in book.cells for output in cell.get("outputs", [])]:
        if output.output_type == "stream":
            lines = re.split(r"[\r\n]", output.text)
            output.text = "\n".join(line for line in lines if not line.startswith(PROGRESS))
    return book


def _mathml(tex: str, display: str) -> str:
    try:
        return convert(tex, display=display)
    except Exception:  # its errors have no common class, and a slip in an equation is no reason to fail
        return f"<code>{escape(tex)}</code>"


class _Prose(IPythonRenderer):
    """Write a Markdown cell as HTML: equations as MathML, pictures inside, only links that lead somewhere."""

    def __init__(self, notebooks: Sequence[str], project: Path):
        super().__init__(escape=False, path=str(project))
        self.notebooks, self.headings = notebooks, list[tuple[int, str, str]]()

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """Give the heading an id, and note it for the table of contents."""
        name = f"{len(self.headings)}-{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')}"  # two may have one text
        self.headings.append((level, name, re.sub("</?a[^>]*>", "", text)))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def block_math(self, body: str) -> str:
        """Write an equation as MathML that scrolls where it is wide."""
        return f'<span class="wide">{_mathml(body, "block")}</span>'

    def inline_math(self, body: str) -> str:
        """Write an equation within a line as MathML."""
        return _mathml(body, "inline")

    def table(self, text: str) -> str:
        """Let a table scroll where it is wide."""
        return f'<div class="wide"><table>\n{text}</table></div>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """Put a picture of the project into the page; of any other, leave the description."""
        data = self._src_to_base64(re.sub(r"^(\.\./)+", "", url))  # notebooks lie one folder below the project
        return f'<img src="{data}" alt="{escape(text)}">' if data else escape(text)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Link a page of the report or the web; of any other link, leave the text."""
        stem = re.sub(r"\.ipynb(#.*)?$", "", url)
        if stem in self.notebooks:
            return f'<a href="{stem}.html">{text}</a>'
        return super().link(text, url, title) if re.match("https?:|mailto:", url) else text


def _printed(text: str) -> str:
    """Return as HTML what a cell printed as Markdown. It may quote a foreign caption: no HTML, TeX, picture or link."""
    markdown = mistune.create_markdown(escape=True, plugins=["table"])
    markdown.inline.rules = [rule for rule in markdown.inline.rules if "link" not in rule]  # pictures are links, too
    return str(markdown(text))


def compared(dataset: str, scale: str, rows: pd.DataFrame) -> str:
    """Return in one sentence how findings agree with the reference of that data set and scale; "" without one."""
    folder = findings.reference_folder(dataset, scale)
    try:
        return findings.compare(rows, findings.read_reference(folder)) if folder.is_dir() else ""
    except findings.FindingsError as error:
        return f"Not compared with the reference: {error}"


def page(book: NotebookNode, stem: str, notebooks: Sequence[str], project: Path, scale: str) -> str:
    """Return an executed notebook as HTML, with a banner at scale smoke. `notebooks`: all pages in order of reading."""
    shown: dict[str, Any] = {"scale": scale, "metadata": {"path": "", "name": stem}}
    prose = _Prose(notebooks, project)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = MarkdownWithMath(prose).render(cell.source)
        cell.metadata["section"] = prose.headings[-1][2] if prose.headings else stem
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = _printed(output.data["text/markdown"])
    at = notebooks.index(stem)
    shown |= {"previous": notebooks[at - 1] if at else "", "next": "".join(notebooks[at + 1 : at + 2])}
    shown["title"] = prose.headings[0][2] if prose.headings else stem
    shown["headings"] = [heading for heading in prose.headings if heading[0] in (2, 3)]
    where = {"extra_template_basedirs": [str(TEMPLATES.parent)], "template_name": TEMPLATES.name}
    return HTMLExporter(template_file="page.html.j2", **where).from_notebook_node(book, shown)[0]


def write(project: Path, executed: Path, dataset: str, scale: str) -> None:
    """Write the page of an executed notebook, and the index of its data set and scale.

    What the index shows of a notebook is kept beside its page, so that both are of the same run. A notebook of the
    project that has no page gets one that says so: every link leads somewhere.
    """
    folder, results = store.root() / "report" / executed.parent.name, findings.results_folder(dataset, scale)
    book, stem = cleaned(executed), executed.stem
    found = json.loads((results / f"{stem}.json").read_bytes())
    for name in found["figures"]:
        for ending in findings.ENDINGS:
            store.write_bytes(folder / "figures" / f"{name}{ending}", (results / f"{name}{ending}").read_bytes())
    found["figures"] = [json.loads((folder / "figures" / f"{name}.json").read_bytes()) for name in found["figures"]]
    found |= {"title": title(executed), "date": time.strftime("%Y-%m-%d %H:%M")}
    found["parameters"] = book.metadata.get("papermill", {}).get("parameters", {})
    store.write_json(folder / f"{stem}.json", found)
    stems = [path.stem for path in project.glob("notebooks/[0-9]*.ipynb")]
    stems.sort(key=lambda stem: (READ_AFTER.get(stem[:2], stem[:2]), stem[:2] in READ_AFTER, stem))
    for name in stems:
        if name != stem and not (folder / f"{name}.html").exists():
            text = f"# {name}\n\nThis notebook was not run here: `./run_all.sh {scale} --only {name[:2]}` runs it."
            absent = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
            store.write_bytes(folder / f"{name}.html", page(absent, name, stems, project, scale).encode())
    own = scale if found["findings"] else ""  # the tour shows the reference, at any scale
    store.write_bytes(folder / f"{stem}.html", page(book, stem, stems, project, own).encode())
    paths = [path for name in stems if (path := folder / f"{name}.json").exists()]
    rows = pd.concat([findings.read_results(path)["findings"] for path in paths])
    shown = {"title": f"Report of {published_name(dataset)}, scale {scale}", "scale": scale, "stems": stems}
    shown |= {"compared": compared(dataset, scale, rows), "books": [json.loads(path.read_bytes()) for path in paths]}
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    store.write_bytes(folder / "index.html", templates.get_template("index.html.j2").render(resources=shown).encode())


def print_findings(dataset: str, scale: str, notebooks: list[Path]) -> None:
    """Print what these notebooks found, and how that compares with the reference."""
    folder = findings.results_folder(dataset, scale)
    found = [findings.read_results(folder / f"{path.stem}.json")["findings"] for path in notebooks]
    if not (rows := pd.concat([pd.DataFrame(), *found])).size:
        return
    if scale == "smoke":
        print(f"\n{len(rows)} numbers; smoke shows that the machinery works, and nothing is decided.")
        return
    print("\nFindings: verdict, value [95 % interval], claim")
    for row in rows.itertuples():
        value, low, high = ("-" if pd.isna(v) else f"{v:.3f}" for v in (row.value, row.low, row.high))
        verdict, interval = f"{row.verdict:<{rows['verdict'].str.len().max()}}", f"{value} [{low}, {high}]"
        print(f"{verdict}  {interval:<24}  {row.finding} {row.claim}{f' ({row.reason})' * bool(row.reason)}")
    if sentence := compared(dataset, scale, rows):
        print(sentence)


def print_list(dataset: str, scale: str, notebooks: list[Path]) -> None:
    """Print the notebooks, each with its title, when it was run here, and the verdicts of the reference."""
    own = findings.results_folder(dataset, scale)
    reference = findings.reference_folder(dataset, scale)
    known = findings.read_reference(reference) if reference.is_dir() else pd.DataFrame(columns=["notebook", "verdict"])
    for path in notebooks:
        results, counts = own / f"{path.stem}.json", Counter(known.loc[known["notebook"] == path.stem, "verdict"])
        made = time.localtime(results.stat().st_mtime) if results.is_file() else None
        here = time.strftime("run %Y-%m-%d %H:%M", made) if made else "not run"
        committed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing"
        print(f"{path.stem}  {title(path)}\n    here: {here}\n    committed: {committed}")
