"""Memory and seconds to list a table of a million rows.

    python tests/benchmarks/manifest_memory.py [ROWS]

Each kind of table is read in a process of its own. Memory is what the process gained at its peak over what it held after
its imports; for Parquet that includes pyarrow, which is imported while the table is read.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(path: Path, rows: int) -> None:
    """Write a table of paths like ImageNet's, in a thousand classes, two thirds of the rows in train."""
    names = (f"n{row % 1000:08}/n{row % 1000:08}_{row:08}.JPEG" for row in range(rows))
    splits = ("train", "train", "val")
    if path.suffix == ".csv":
        with path.open("w") as file:
            file.write("path,label,split\n")
            file.writelines(f"{name},n{row % 1000:08},{splits[row // 1000 % 3]}\n" for row, name in enumerate(names))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [f"n{row % 1000:08}" for row in range(rows)]
    pq.write_table(
        pa.table({"path": list(names), "label": labels, "split": [splits[row // 1000 % 3] for row in range(rows)]}),
        path,
    )


def measure(path: str) -> None:
    """List one table and print seconds, bytes gained and the number of rows."""
    from finetune.data.manifest import read_manifest

    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    start = time.perf_counter()
    listing = read_manifest(path)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": _peak() - before, "rows": len(listing)}))


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(rows: int) -> None:
    """Write and measure each kind of table."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("t.csv", "t.parquet"):
            path = Path(folder) / name
            write(path, rows)
            out = json.loads(subprocess.check_output([sys.executable, __file__, "measure", os.fspath(path)], text=True))
            print(f"{name}: {out['rows']:,} rows, {out['seconds']:.1f} s, {out['memory'] / 1e6:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
