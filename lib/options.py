"""The options of run_all.sh, and where it puts things.

Standard library only: run_all.sh also asks it about a misspelt option before it installs anything.
"""

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib.recipes import SCALES, slug


class OptionError(ValueError):
    """Something was asked for that does not exist; the message says what there is."""


@dataclass(frozen=True)
class Options:
    """One call of run_all.sh. `seeds` 0 means the scale's own number."""

    scale: str = "laptop"
    dataset: str = "scenes"
    only: str = ""
    start: str = ""
    seeds: int = 0
    force: bool = False
    keep_going: bool = False
    list: bool = False
    lab: bool = False


@dataclass(frozen=True)
class Place:
    """Where things lie: the project (figures/ in it), its notebooks, and runs."""

    project: Path
    notebooks: Path
    runs: Path

    def folder(self, kind: str, options: Options) -> Path:
        """Return runs/<kind>/<dataset>-<scale>."""
        return self.runs / kind / f"{slug(options.dataset)}-{options.scale}"

    def results(self, options: Options, notebook: Path) -> Path:
        return self.folder("results", options) / f"{notebook.stem}.json"


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ` Did you mean NAME?` for the name that looks most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("run_all.sh", "./run_all.sh --help", add_help=False, allow_abbrev=False)
    parser.add_argument("scale", nargs="?", default="laptop")
    parser.add_argument("--dataset", default="scenes")
    parser.add_argument("--only", default="")
    parser.add_argument("--from", dest="start", default="")
    parser.add_argument("--seeds", default="0")
    for name in ("--force", "--keep-going", "--list", "--lab"):
        parser.add_argument(name, action="store_true")
    return parser


def parse(words: list[str]) -> Options:
    """Return the options of a command line. Raises OptionError for an unknown scale, option or number of seeds."""
    parser = _parser()
    values, unknown = parser.parse_known_args(words)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings] + ["--test", "--help"]
        raise OptionError(f"{unknown[0]!r} is not an option.{nearest(unknown[0].split('=')[0], known)}")
    if values.scale not in SCALES:
        raise OptionError(f"no scale is called {values.scale!r}: {', '.join(SCALES)}.{nearest(values.scale, SCALES)}")
    if "--seeds" in " ".join(words) and (not values.seeds.isdigit() or int(values.seeds) < 1):
        raise OptionError(f"--seeds: expected a whole number from 1 on, found {values.seeds!r}.")
    if values.only and values.start:
        raise OptionError("--only and --from: give one of them.")
    if not values.dataset.strip():
        raise OptionError("--dataset: expected a name or a path, found nothing.")
    return Options(**{**vars(values), "seeds": int(values.seeds)})


def command(options: Options, notebook: str, name: str = "./run_all.sh") -> str:
    """Return the command line that does `options` from this notebook (its number or stem) on."""
    words = [name, options.scale]
    if options.dataset != "scenes":
        words += ["--dataset", options.dataset]
    words += ["--only" if options.only else "--from", notebook]
    if options.seeds:
        words += ["--seeds", str(options.seeds)]
    words += ["--force"] * options.force + ["--keep-going"] * options.keep_going
    return shlex.join(words)


if __name__ == "__main__":
    try:
        parse(sys.argv[1:])
    except OptionError as error:
        print(f"{error} ./run_all.sh --help lists what there is.", file=sys.stderr)
        sys.exit(2)
