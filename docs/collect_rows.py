"""Write benchmark.json, the rows that benchmark.md shows, from the folders of results of `zootools bench`.

    python docs/collect_rows.py bench [FOLDER ...]

Rows of another population or of an older source of their method are left out, and so are methods that train with fewer
than three seeds. The lines that are printed name what every task lacks.
"""

import json
import sys
from pathlib import Path

from representation.benchmark.methods.table import METHODS
from representation.benchmark.results import ROWS, Result, read_rows
from representation.benchmark.run import code_sha256
from representation.benchmark.tasks import bundled_tasks, load_task

SEEDS = 3


def collect(folders: list[Path]) -> tuple[list[Result], list[str]]:
    """Return the rows of all folders that are current, in their order, and what is missing."""
    tasks = {name: load_task(name).sha256 for name in sorted(bundled_tasks())}
    codes = {name: code_sha256(kind) for name, kind in METHODS.items()}
    files = [path for folder in folders for path in sorted((folder / ROWS).glob("*.json"))]
    current = {
        row.key: row
        for path in files
        for row in read_rows(path)
        if tasks.get(row.task) == row.task_sha256 and codes.get(row.method) == row.code_sha256
    }
    kept, missing = list[Result](), list[str]()
    for task in tasks:
        lacking = []
        for method, kind in METHODS.items():
            found = [row for row in current.values() if (row.task, row.method) == (task, method)]
            if len(found) >= (SEEDS if kind.trains else 1):
                kept += found
            else:
                lacking.append(method)
        if lacking:
            missing.append(f"{task}: no rows of {', '.join(lacking)}")
    return sorted(kept, key=lambda row: row.key), missing


if __name__ == "__main__":
    kept, missing = collect([Path(folder) for folder in sys.argv[1:] or ["bench"]])
    lines = ",\n".join(json.dumps(row.dump(), sort_keys=True) for row in kept)
    (Path(__file__).parent / "benchmark.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print("\n".join([*missing, f"benchmark.json: {len(kept)} rows"]))
