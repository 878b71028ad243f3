"""The division of the Small CNN Zoo that neural functional networks (Zhou et al., 2023) published."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.filesystem.inside import read_inside
from zootools.storage.verified_files import unreadable

ENDING = "_split.csv"
FINAL = 86
"""The step of the final checkpoints, the only ones that are divided."""
MAX_BYTES = 100 << 20


def nfn_split(root: Path, there: Sequence[str], table: pa.Table) -> tuple[Path, pa.Array, str]:
    """Return the file with the published order, the split of every row, and a sentence about it for the card.

    The file lists the rows of the zoo in random order. Its readers take the header, which is a 0, for the first entry,
    so row 0 is there twice; as the published results were computed in this way, the entry is kept, and a checkpoint
    that is thereby in two splits gets the first one. Of the final checkpoints in this order the second half is the
    test split; the first half, shuffled by ``random.Random(0)``, gives 80 % to training and 20 % to validation. A
    checkpoint has the split of the final one of its model; for a model without it, the split is null.

    Args:
        root: the folder of the zoo, which has the file.
        there: the names in this folder.
        table: ``model`` and ``epoch`` of every row.

    Raises ZooNotFoundError unless there is one file, DamagedZooError unless it has every row.
    """
    files = [name for name in there if name.endswith(ENDING)]
    if len(files) != 1:
        raise ZooNotFoundError(
            f"{root}: split nfn: found {', '.join(files) or f'no file *{ENDING}'}; expected one, from the folder "
            "experiments/predict_gen_data_splits of github.com/AllanYangZhou/nfn"
        )
    path = root / files[0]
    order = _order(path, table.num_rows)
    epochs = table["epoch"].to_numpy()
    final = order[epochs[order] == FINAL]
    if not len(final):
        raise SpecError(f"{root}: split nfn: no row has the step {FINAL}, whose checkpoints are divided")
    half = len(final) // 2
    first = list(range(half))
    # The published rule; another generator would give another division.
    random.Random(0).shuffle(first)  # noqa: S311
    of_position = np.full(len(final), "test", dtype=object)
    of_position[first] = ["train" if place < int(0.8 * half) else "validation" for place in range(half)]
    models = table["model"].to_pylist()
    splits: dict[str, str] = {}
    twice = set[str]()
    for row, split in zip(final.tolist(), of_position.tolist(), strict=True):
        if splits.setdefault(models[row], split) != split:
            twice.add(f"{models[row]} is in {splits[models[row]]} and, in the published order, in {split} as well")
    note = f"split: that of nfn, by {files[0]}; {len({*models} - splits.keys())} models without step {FINAL} by hash"
    return path, pa.array([splits.get(model) for model in models], pa.string()), "; ".join([note, *sorted(twice)])


def _order(path: Path, rows: int) -> npt.NDArray[np.int64]:
    """Return the rows in the published order, its header included. Raises DamagedZooError unless it has every row."""
    try:
        order = np.array(read_inside(path.parent, path.name, MAX_BYTES).split(), np.int64)
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=path) from error
    except (ValueError, OverflowError) as error:
        raise DamagedZooError(f"is not a list of rows ({error!s:.100})", path=path) from error
    entries = order[1:] if len(order) == rows + 1 and order[0] == 0 else order
    if len(entries) != rows or not np.array_equal(np.sort(entries), np.arange(rows)):
        raise DamagedZooError(f"has {len(order):,} entries; expected each of the {rows:,} rows once", path=path)
    return order
