"""Result rows: one for each task, method and seed, their files, and the summary over seeds."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from representation.benchmark.tasks import MetricName
from representation.evaluation.results import mean_and_interval
from zootools.errors import SpecError
from zootools.filesystem.files import durable_path, open_regular, write_durably
from zootools.hashing import pretty_json
from zootools.spec.sections import Section
from zootools.spec.values import Line
from zootools.storage.parquet_guard import check_pages

ROWS = "rows"
"""The folder of the files of single rows, in the folder of results."""
VERSION = "version_"
"""How the columns of `Versions` begin in a table."""
NUMBERS = (
    *("score", "interval", "validation", "kendall_tau", "r2", "accuracy"),
    *("ceiling", "majority", "fit_seconds", "predict_seconds"),
)
"""The columns of decimal numbers."""
REQUIRED = ("code_sha256", "score", "ceiling")
"""The keys of a row that may be null, and may not be missing."""
MOST_BYTES, MOST_ROWS = 64 << 20, 1_000_000
"""Largest file of result rows that is read."""


class Versions(Section):
    """What computed a row."""

    zootools: Line
    python: Line
    torch: Line
    numpy: Line
    scikit_learn: Line
    processor: Line
    """The instructions that torch uses, such as AVX2."""


class Result(Section):
    """The result of one method on one task with one seed."""

    task: Line
    task_sha256: Line
    """Hash of what the task pins: populations, filter, target and metric. Only rows with the same one compare."""
    method: Line
    code_sha256: Line | None
    """Hash of the sources of the method's class and its bases, and of the files that it reads, such as a recipe; None
    where there is no source, as in an interpreter."""
    seed: int
    metric: MetricName
    score: float | None
    """The metric on the test split; None where it is not defined, or the method cannot be fitted (`reason`)."""
    interval: float | None = None
    """Half the width of the 95 % interval of the score over other test models (jackknife over groups of models)."""
    reason: Line | None = None
    """Why there is no score."""
    validation: float | None = None
    """The metric on the validation split."""
    kendall_tau: float | None = None
    r2: float | None = None
    accuracy: float | None = None
    networks: int
    """Test networks."""
    ceiling: float | None
    """The score of a predictor without a mistake (`representation.benchmark.tasks.Statistics`)."""
    majority: float
    """The share of the test networks at the most frequent value or class."""
    invariant: bool
    trains: bool
    parameters: int | None = None
    fit_seconds: float
    """Processor seconds, of all threads."""
    predict_seconds: float
    """Processor seconds for the validation and test networks."""
    peak_bytes: int | None = None
    """The most memory of the process while fitting and predicting, beyond that before; None where it is not known."""
    versions: Versions

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, method and seed."""
        return self.task, self.method, self.seed


_ROWS: TypeAdapter[list[Result]] = TypeAdapter(list[Result])


def row_file(out: Path, task: str, method: str, seed: int) -> Path:
    """Return the file of a row in a folder of results."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", method).strip("-")[:40]
    return out / ROWS / f"{task}--{slug}-{hashlib.sha256(method.encode()).hexdigest()[:8]}--{seed}.json"


def write_row(out: Path, result: Result) -> None:
    """Write a row into its file."""
    path = row_file(out, *result.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, pretty_json(result.dump()))


def read_rows(path: Path) -> list[Result]:
    """Read result rows: a Parquet file, a JSON file with a list of rows, or the file of one row.

    Raises SpecError, with the row and the key, for anything else.
    """
    try:
        with open_regular(path) as file:
            if path.suffix == ".parquet":
                if path.stat().st_size > MOST_BYTES:
                    raise SpecError(f"{path}: larger than {MOST_BYTES:,} bytes; expected a table of results")
                data = file.read(MOST_BYTES)
                check_pages(data, MOST_ROWS)  # before any of them is unpacked
                values = [_nested(row) for row in pq.read_table(pa.BufferReader(data)).to_pylist()]
            else:
                values = json.loads(file.read(MOST_BYTES))
        return _ROWS.validate_json(json.dumps(values if isinstance(values, list) else [values]))
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file of results") from error
    except ValidationError as error:
        first = error.errors()[0]
        row, *key = first["loc"]
        place = ".".join(map(str, key)) or "the row"
        raise SpecError(
            f"{path}: row {row}: {place}: {first['msg']}; found {first['input']!r:.80} ({error.error_count()} faults)"
        ) from error
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: is not a table of results of the benchmark (Parquet, or a JSON list)") from error


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write result rows as Parquet; the columns of `Versions` begin with ``version_``."""
    rows = []
    for result in results:
        row = result.model_dump(mode="json")
        rows.append(row | {f"{VERSION}{name}": value for name, value in row.pop("versions").items()})
    with durable_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _schema()), temporary)


def _schema() -> pa.Schema:
    """Return the columns of a table of results."""
    kinds = {"seed": pa.int64(), "networks": pa.int64(), "parameters": pa.int64(), "peak_bytes": pa.int64()}
    kinds |= dict.fromkeys(("invariant", "trains"), pa.bool_())
    kinds |= dict.fromkeys(NUMBERS, pa.float64())
    names = [name for name in Result.model_fields if name != "versions"]
    names += [f"{VERSION}{name}" for name in Versions.model_fields]
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def _nested(row: dict[str, object]) -> dict[str, object]:
    """Return a row of a table as a section: with `Versions`, and without the keys that have no value."""
    versions = {name.removeprefix(VERSION): value for name, value in row.items() if name.startswith(VERSION)}
    others = {name: value for name, value in row.items() if not name.startswith(VERSION)}
    kept = {name: value for name, value in others.items() if value is not None or name in REQUIRED}
    return kept | {"versions": versions}


@dataclass(frozen=True)
class Summary:
    """The rows of all seeds of one method on one task."""

    task: str
    method: str
    source: str
    """Whose rows: empty for those of this call, else the file that they were read from."""
    metric: str
    score: float | None
    """Mean over the seeds that have a score; None where none has."""
    seeds: int
    """Seeds with a score."""
    over_seeds: float | None
    """Half the width of the 95 % interval (Student's) of the mean over seeds; None with fewer than two scores."""
    over_models: float | None
    """Half the width of the 95 % interval over other test models (`Result.interval`), its mean over seeds."""
    ceiling: float | None
    majority: float
    invariant: bool
    parameters: int | None
    seconds: float
    """Processor seconds of fitting and predicting, their mean over seeds."""
    peak_bytes: int | None
    reason: str
    """Why seeds have no score; empty where all have one."""


def summarise(results: Iterable[Result], source: str = "") -> list[Summary]:
    """Return one entry for each task and method, in the order of their names."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.key):
        groups.setdefault(result.key[:2], []).append(result)
    return [_summary(group, source) for group in groups.values()]


def _summary(group: Sequence[Result], source: str) -> Summary:
    first = group[0]
    scores = [result.score for result in group if result.score is not None]
    mean, over_seeds = mean_and_interval(scores) if scores else (None, None)
    intervals = [result.interval for result in group if result.interval is not None]
    return Summary(
        task=first.task,
        method=first.method,
        source=source,
        metric=first.metric,
        score=mean,
        seeds=len(scores),
        over_seeds=over_seeds,
        over_models=sum(intervals) / len(intervals) if intervals else None,
        ceiling=first.ceiling,
        majority=first.majority,
        invariant=first.invariant,
        parameters=max((result.parameters for result in group if result.parameters is not None), default=None),
        seconds=sum(result.fit_seconds + result.predict_seconds for result in group) / len(group),
        peak_bytes=max((result.peak_bytes for result in group if result.peak_bytes is not None), default=None),
        reason="; ".join(dict.fromkeys(result.reason for result in group if result.reason is not None)),
    )
