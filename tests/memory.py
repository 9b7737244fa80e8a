"""How much memory notebook 05 takes to score many pairs, and how long: a row for each number of pairs.

python tests/memory.py FOLDER [PAIRS ...]     10,000 and 100,000 pairs if not given, by two tiny models
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lib import checkpoints, embeddings
from lib.recipes import at_scale, f_and_g
from lib.scenes import make_scenes

AT_ONCE = 10_000  # scenes are drawn, and written


def write(path: Path, count: int) -> None:
    """Write a parquet file of drawn scenes, each with one caption."""
    made, writer = make_scenes(min(count, AT_ONCE), 32, 0), None
    for start in range(0, count, AT_ONCE):
        cells = []
        for image in made.images[: count - start]:
            Image.fromarray(image.transpose(1, 2, 0)).save(file := io.BytesIO(), "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        captions = [f"{own[0]} {start}" for own in made.captions[: count - start]]
        table = pa.table({"image": cells, "caption": captions})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def score(path: Path, models: list[str]) -> None:
    """Score all pairs, as the notebook does; print the seconds and the most memory that this process took, in GB."""
    start, source = time.monotonic(), checkpoints.open_source(str(path), "", (), ["", ""])
    embeddings.score(source, [checkpoints.load(name) for name in models], path.with_suffix(".scores"))
    print(f"{time.monotonic() - start:.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]).absolute()
    if sys.argv[2:3] == ["--score"]:
        score(folder, sys.argv[3:])
        sys.exit()
    os.environ["CLIPMEM_RUNS"] = str(folder / "runs")
    models = []
    for name, recipe in zip("fg", f_and_g(at_scale("smoke", "scenes"), 0), strict=True):
        checkpoints.export(recipe, folder / name)
        models.append(f"local-dir:{folder / name}")
    for count in map(int, sys.argv[2:] or (10_000, 100_000)):
        write(folder / f"{count}.parquet", count)
        command = [sys.executable, __file__, str(folder / f"{count}.parquet"), "--score", *models]
        seconds, memory = subprocess.check_output(command, text=True).splitlines()[-1].split()
        print(f"{count:,} pairs, two models: {seconds} seconds, {memory} GB of memory", flush=True)
