"""The results of `representation.represent`: a tidy table, its file, and how it is shown beside the paper's figures."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from representation.paper import published
from zootools.filesystem.files import durable_path
from zootools.text import printable

SCHEMA = pa.schema(
    [
        ("zoo", pa.string()),  # that encoder and probes were fitted on
        ("evaluated_on", pa.string()),  # the same, or the one transferred to
        ("method", pa.string()),
        ("probe", pa.string()),  # paper or standardised; null for the reconstruction
        ("split", pa.string()),
        ("target", pa.string()),
        ("metric", pa.string()),  # r2, accuracy, kendall_tau
        ("value", pa.float64()),  # null where it is not defined
        ("alpha", pa.float64()),  # the chosen penalty
        ("rows", pa.int64()),  # checkpoints scored
        ("fitted_on", pa.int64()),  # training checkpoints that the method, not the probe, was fitted on
        ("seed", pa.int64()),
        ("recipe", pa.string()),
    ]
)
PERCENT = ("r2", "accuracy")
"""Metrics that are shown in percent, as in the paper."""


@dataclass(frozen=True)
class Results:
    """Every score, and what was left out."""

    table: pa.Table
    """One row per score, with the columns of `SCHEMA`."""
    zoo: str
    recipe: str
    """Its name, and what was changed of it."""
    counts: dict[str, int]
    """Models and checkpoints by split."""
    notes: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why."""

    @classmethod
    def of(
        cls,
        rows: Iterable[dict[str, Any]],
        zoo: str,
        recipe: str,
        counts: dict[str, int],
        notes: list[str],
        excluded: dict[str, str],
    ) -> "Results":
        """Make a table of rows that lack only zoo and recipe; NaN becomes null."""
        common = {"zoo": zoo, "recipe": recipe}
        full = [row | common | {"value": row["value"] if math.isfinite(row["value"]) else None} for row in rows]
        return cls(pa.Table.from_pylist(full, SCHEMA), zoo, recipe, counts, notes, excluded)

    def save(self, path: Path) -> None:
        """Write the table as Parquet, with everything else in the metadata of its schema."""
        with durable_path(path) as temporary:
            pq.write_table(self.table.replace_schema_metadata({"zootools": json.dumps(self._about())}), temporary)

    def to_json(self) -> dict[str, Any]:
        """Return `summary` and what it is about as plain values."""
        return self._about() | {"scores": self.summary()}

    def _about(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("zoo", "recipe", "counts", "notes", "excluded")}

    def summary(self) -> list[dict[str, Any]]:
        """Return one entry per score: its mean over seeds, their number, and half the width of the 95 % interval.

        The interval is Student's, for the mean over seeds of one zoo and one split; None with a single seed. Beside
        it stands the paper's figure, in the same unit, where it has one.
        """
        groups: dict[tuple[Any, ...], list[float | None]] = {}
        keys = ("zoo", "evaluated_on", "method", "probe", "split", "target", "metric")
        for row in self.table.to_pylist():
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
        entries = []
        for group, found in groups.items():
            entry = dict(zip(keys, group, strict=True))
            values = [value for value in found if value is not None]
            mean, interval = mean_and_interval(values) if values else (None, None)
            paper = published(**{key: entry[key] for key in keys if key not in ("probe", "split")})
            paper = paper if entry["split"] == "test" and entry["probe"] != "standardised" else None
            entries.append(entry | {"mean": mean, "interval": interval, "seeds": len(values), "paper": paper})
        return entries

    def render(self) -> str:
        """Return the test scores as text: a table per zoo, probe and kind of score, the paper's figures in it.

        ``96.4 < 97.0`` reads: ours 96.4, the paper's 97.0.
        """
        test = [entry for entry in self.summary() if entry["split"] == "test"]
        sizes = ", ".join(f"{self.counts[f'{s}_models']} {s}" for s in ("train", "validation", "test"))
        lines = [f"{self.zoo}: {sizes} models, recipe {self.recipe}; scores on the test split, ours < or > the paper's"]
        for evaluated_on in dict.fromkeys(entry["evaluated_on"] for entry in test):
            here = [entry for entry in test if entry["evaluated_on"] == evaluated_on]
            for probe in dict.fromkeys(entry["probe"] for entry in here if entry["probe"]):
                for metrics in (PERCENT, ("kendall_tau",)):
                    # At home Kendall's tau says little that R2 does not; it is in the file.
                    if metrics != PERCENT and evaluated_on == self.zoo:
                        continue
                    shown = [e for e in here if e["metric"] in metrics and e["probe"] in (probe, None)]
                    unit = "R2 or accuracy in %" if metrics == PERCENT else "Kendall's tau"
                    lines += ["", f"{evaluated_on}, {probe} probe, {unit}", *_grid(shown)]
        fits = {row["method"]: row["fitted_on"] for row in self.table.to_pylist() if row["fitted_on"]}
        lines += ["", "fitted on: " + ", ".join(f"{name} {count:,} checkpoints" for name, count in fits.items())]
        lines += [f"not scored: {name}: {reason}" for name, reason in self.excluded.items()]
        return "\n".join(map(printable, [*lines, *self.notes]))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % interval (Student's); None for a single value."""
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, None
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def _grid(entries: list[dict[str, Any]]) -> list[str]:
    """Lay entries out with one line per target and one column per method."""
    targets = list(dict.fromkeys(entry["target"] for entry in entries))
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    cells = {(entry["target"], entry["method"]): _cell(entry) for entry in entries}
    rows = [["", *methods]]
    rows += [[printable(target, 60), *(cells.get((target, m), "") for m in methods)] for target in targets]
    widths = [max(len(row[column]) for row in rows) for column in range(len(methods) + 1)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None:
        return "undefined"
    factor, digits = (100, 1) if entry["metric"] in PERCENT else (1, 2)
    ours = f"{factor * entry['mean']:.{digits}f}"
    text = ours + (f"±{factor * entry['interval']:.{digits}f}" if entry["interval"] is not None else "")
    if entry["paper"] is None:
        return text
    theirs = f"{factor * entry['paper']:.{digits}f}"
    order = "=" if ours == theirs else "<" if factor * entry["mean"] < factor * entry["paper"] else ">"
    return f"{text} {order} {theirs}"
