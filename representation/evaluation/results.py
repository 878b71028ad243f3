"""The results of `representation.represent`: a table with one row per score, its file, and its text form."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator

from representation.paper import published
from representation.recipes import RecipeIdentity
from zootools.errors import SpecError
from zootools.filesystem.files import durable_path, open_regular
from zootools.spec.sections import Section
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
TRAIN = "reconstruction (train)"
"""Row of the rendered table for the reconstruction of the training networks."""
PERCENT = ("r2", "accuracy")
"""Metrics that are shown in percent, as in the paper."""
LARGE = 10_000
"""From here on, only the order of magnitude of a score is shown."""


class ResultsIdentity(Section):
    """What the results in a folder belong to."""

    recipe: RecipeIdentity
    weights_sha256: str
    """Hash of the weights of all splits (`ZooDataset.digest`)."""
    encoder_sha256: str | None = None
    """Hash of an existing encoder that was scored; None for encoders of the folder itself."""


class Score(Section):
    """One score: a row of the results without zoo and recipe, which are the same for the whole table."""

    method: str
    seed: int
    fitted_on: int | None = None
    """Training checkpoints that the method, not the probe, was fitted on; None where there is nothing to fit."""
    evaluated_on: str
    """Name of the zoo that is scored: the one trained on, or one transferred to."""
    split: str
    target: str
    """A property of the models, or ``reconstruction``, or the objective of a search."""
    metric: str
    """``r2``, ``accuracy``, ``kendall_tau``, ``variance``, or ``loss``."""
    value: float | None
    """None if undefined, such as the R2 of a constant property."""
    rows: int
    """Checkpoints scored."""
    probe: str | None = None
    """``paper`` or ``standardised``; None for scores without a probe."""
    alpha: float | None = None
    """The chosen penalty of the probe, if any."""

    @field_validator("value", mode="before")
    @classmethod
    def _defined(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Summary:
    """The scores of all seeds that agree in every other column, and the paper's value."""

    zoo: str
    evaluated_on: str
    method: str
    probe: str | None
    split: str
    target: str
    metric: str
    mean: float | None
    """Mean over seeds; None where no seed has a defined score."""
    interval: float | None
    """Half the width of the 95 % interval (Student's) of the mean; None with a single seed."""
    seeds: int
    """Number of seeds with a defined score."""
    paper: float | None
    """The paper's value, in the same unit, if it has one."""


@dataclass(frozen=True)
class Results:
    """All scores, and what was left out."""

    table: pa.Table
    """One row per score, with the columns of `SCHEMA`."""
    zoo: str
    recipe: str
    """Name of the recipe, and the overrides."""
    counts: dict[str, int]
    """Models and checkpoints by split."""
    notes: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why."""

    @classmethod
    def of(
        cls,
        scores: Iterable[Score],
        zoo: str,
        recipe: str,
        counts: dict[str, int],
        notes: list[str],
        excluded: dict[str, str],
    ) -> "Results":
        """Make the table from scores."""
        rows = [{"zoo": zoo, "recipe": recipe, **dict(score)} for score in scores]
        return cls(pa.Table.from_pylist(rows, SCHEMA), zoo, recipe, counts, notes, excluded)

    def save(self, path: Path, identity: ResultsIdentity | None = None) -> None:
        """Write the table as Parquet, with the other fields as JSON in its schema's metadata (key ``zootools``).

        ``identity`` is written beside them, for `read_identity`.
        """
        about = self._about() | ({} if identity is None else {"identity": identity.dump()})
        with durable_path(path) as temporary:
            pq.write_table(self.table.replace_schema_metadata({"zootools": json.dumps(about)}), temporary)

    def to_json(self) -> dict[str, Any]:
        """Return `summary` and the other fields as plain values."""
        return self._about() | {"scores": [asdict(entry) for entry in self.summary()]}

    def _about(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("zoo", "recipe", "counts", "notes", "excluded")}

    def summary(self) -> list[Summary]:
        """Return one entry per group of scores that differ only in the seed, in the order of the table."""
        groups: dict[tuple[Any, ...], list[float | None]] = {}
        keys = ("zoo", "evaluated_on", "method", "probe", "split", "target", "metric")
        for row in self.table.to_pylist():
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
        entries = []
        for (zoo, evaluated_on, method, probe, split, target, metric), found in groups.items():
            values = [value for value in found if value is not None]
            mean, interval = mean_and_interval(values) if values else (None, None)
            comparable = split == "test" and probe != "standardised"
            paper = published(zoo, evaluated_on, method, target, metric) if comparable else None
            place = (zoo, evaluated_on, method, probe, split, target, metric)
            entries.append(Summary(*place, mean, interval, len(values), paper))
        return entries

    def render(self) -> str:
        """Return the test scores as text: a table per zoo, probe and kind of score, with the paper's values.

        ``96.4 < 97.0`` reads: ours 96.4, the paper's 97.0.
        """
        summary = self.summary()
        test = [entry for entry in summary if entry.split == "test"]
        # Beside the reconstruction of test networks, that of training networks: the difference is overfitting.
        test += [replace(e, target=TRAIN) for e in summary if e.split == "train" and e.target == "reconstruction"]
        sizes = ", ".join(f"{self.counts[f'{s}_models']} {s}" for s in ("train", "validation", "test"))
        lines = [f"{self.zoo}: {sizes} models, recipe {self.recipe}; scores on the test split, ours < or > the paper's"]
        for evaluated_on in dict.fromkeys(entry.evaluated_on for entry in test):
            here = [entry for entry in test if entry.evaluated_on == evaluated_on]
            for probe in dict.fromkeys(entry.probe for entry in here if entry.probe):
                for metrics in (PERCENT, ("kendall_tau",)):
                    # On the zoo itself Kendall's tau adds little to R2; it is only in the file.
                    if metrics != PERCENT and evaluated_on == self.zoo:
                        continue
                    shown = [entry for entry in here if entry.metric in metrics and entry.probe in (probe, None)]
                    unit = "R2 or accuracy in %" if metrics == PERCENT else "Kendall's tau"
                    lines += ["", f"{evaluated_on}, {probe} probe, {unit}", *_grid(shown)]
        lines += ["", f"fitted on: {', '.join(self._samples())}"]
        lines += [f"not scored: {name}: {reason}" for name, reason in self.excluded.items()]
        return "\n".join(map(printable, [*lines, *self.notes]))

    def _samples(self) -> Iterator[str]:
        """Yield each fitted method with its number of training checkpoints, and of those scored where it is smaller."""
        rows = self.table.to_pylist()
        most = max((row["rows"] for row in rows if row["split"] == "train"), default=0)
        for name in dict.fromkeys(row["method"] for row in rows if row["fitted_on"]):
            mine = [row for row in rows if row["method"] == name]
            scored = max((row["rows"] for row in mine if row["split"] == "train" and row["probe"]), default=most)
            less = f" (probes on {scored:,})" if scored < most else ""
            yield f"{name} {mine[0]['fitted_on']:,} checkpoints{less}"


def read_identity(path: Path) -> ResultsIdentity | None:
    """Return the identity that a file of `Results.save` was written with.

    Returns None if the file is missing or has no identity, as files of older versions. Raises SpecError for a file of
    another kind.
    """
    try:
        with open_regular(path) as file:
            about = json.loads(pq.read_schema(file).metadata[b"zootools"])
        return ResultsIdentity.model_validate_json(json.dumps(about["identity"])) if "identity" in about else None
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(f"{path}: exists, and is not a table of results; use another --out") from error


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % interval (Student's; None for a single value)."""
    from scipy.stats import sem, t

    mean = sum(values) / len(values)
    return mean, float(t.ppf(0.975, len(values) - 1) * sem(values)) if len(values) > 1 else None


def _grid(entries: list[Summary]) -> list[str]:
    """Return the lines of a table with one line per target and one column per method."""
    targets = list(dict.fromkeys(entry.target for entry in entries))
    methods = list(dict.fromkeys(entry.method for entry in entries))
    cells = {(entry.target, entry.method): _cell(entry) for entry in entries}
    rows = [["", *methods]]
    rows += [[printable(target, 60), *(cells.get((target, m), "") for m in methods)] for target in targets]
    widths = [max(len(row[column]) for row in rows) for column in range(len(methods) + 1)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def fixed(value: float, digits: int = 1) -> str:
    """Return a number with a few decimals, or its order of magnitude: exploded weights give scores of -1e36."""
    return f"{value:.{digits}f}" if abs(value) < LARGE else f"{value:.0e}"


def _cell(entry: Summary) -> str:
    if entry.mean is None:
        return "undefined"
    factor, digits = (100, 1) if entry.metric in PERCENT else (1, 2)
    ours = fixed(factor * entry.mean, digits)
    text = ours + (f"±{fixed(factor * entry.interval, digits)}" if entry.interval is not None else "")
    if entry.paper is None:
        return text
    theirs = f"{factor * entry.paper:.{digits}f}"
    order = "=" if ours == theirs else "<" if factor * entry.mean < factor * entry.paper else ">"
    return f"{text} {order} {theirs}"
