"""The benchmark: every (task, method, seed) is one row, which is kept as soon as it is finished.

>>> from representation import bench
>>> print(bench(["tetris_seed_accuracy"], ["W", "s(W)"], zoos=["zoos/tetris_seed"]).markdown())
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from representation.benchmark.distributed import run_on_cluster
from representation.benchmark.methods.encoded import Pretrained
from representation.benchmark.methods.method import Method
from representation.benchmark.methods.table import METHODS
from representation.benchmark.populations import TaskData
from representation.benchmark.results import (
    ROWS,
    Result,
    Summary,
    read_rows,
    row_file,
    summarise,
    write_row,
    write_table,
)
from representation.benchmark.run import code_sha256, run
from representation.benchmark.tables import markdown, page
from representation.benchmark.tasks import Task, load_task
from representation.benchmark.work import Remaining, Work
from representation.output import check_writable
from zootools.choices import check_word
from zootools.errors import SpecError, ZooNotFoundError, did_you_mean
from zootools.filesystem.files import write_durably
from zootools.open import open_zoo
from zootools.text import say
from zootools.zoo import Zoo

OUT = Path("bench")
"""The default folder of results."""
BENCH_ENGINES = ("local", "ray")


@dataclass(frozen=True)
class BenchResults:
    """The rows of a folder of results, and those of others beside them."""

    results: list[Result]
    others: dict[str, list[Result]] = field(default_factory=dict)
    """Rows of others by the file that they were read from."""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> list[Summary]:
        """Return one entry for each task, method and source of rows."""
        return [*summarise(self.results), *(one for name, rows in self.others.items() for one in summarise(rows, name))]

    def markdown(self) -> str:
        """Return the tables of all tasks as Markdown."""
        return markdown(self.summary())

    def html(self) -> str:
        """Return the tables of all tasks as an HTML page."""
        return page(self.summary())

    def to_json(self) -> dict[str, Any]:
        """Return rows, summary and notes as plain values."""
        return {
            "results": [result.model_dump(mode="json") for result in self.results],
            "summary": [asdict(entry) for entry in self.summary()],
            "notes": self.notes,
        }


class BenchKeywords(TypedDict, total=False):
    """Further arguments of `bench`."""

    address: str | None
    """Address of the Ray cluster; by default one is started on this machine."""
    quiet: bool
    """Print nothing on stderr."""


def bench(
    tasks: Sequence[str | Task],
    methods: Sequence[str | type[Method]] = (),
    zoos: Sequence[Zoo | str | Path] = (),
    *,
    seeds: int = 3,
    out: str | Path = OUT,
    compare: Sequence[str | Path] = (),
    engine: str = "local",
    **keywords: Unpack[BenchKeywords],
) -> BenchResults:
    """Run methods on tasks; return the rows of the folder of results for these tasks.

    Every (task, method, seed) is one row in ``out/rows``, which is written when it is finished and not computed again:
    the same call resumes. ``out`` also gets all its rows as ``results.parquet``, and the tables ``table.md`` and
    ``table.html``. A row depends neither on the others nor on their order.

    Args:
        tasks: names of bundled tasks, task files, or tasks.
        methods: names of bundled methods, or classes of your own (`Method`); all bundled ones if there are none.
        zoos: zoos, folders or names for the tasks, found by their names; others are looked for in ``zoos/NAME``, then
            where the task says that they are published.
        seeds: for methods that train, the seeds 0, 1, ...; others run once.
        out: the folder of results.
        compare: files of result rows of others, to show beside these.
        engine: ``local``, or ``ray`` to run on a Ray cluster.
        keywords: see `BenchKeywords`.

    Raises SpecError, before anything is run, for unknown tasks and methods, for zoos that are not the pinned
    population, and for populations with leaks.
    """
    check_word("engine", engine, BENCH_ENGINES)
    kinds = find_methods(methods)
    loaded = _distinct([task if isinstance(task, Task) else load_task(task) for task in tasks])
    theirs, out = {str(path): read_rows(Path(path)) for path in compare}, Path(out)
    check_writable(out)
    found = find_zoos(loaded, zoos)
    data = {task.name: TaskData.of(task, found) for task in loaded}
    ours = {task.name: task.sha256 for task in loaded}
    work = [
        Work(task.name, kind, seed, _encoder(task, kind, seed) if engine == "local" else None)
        for task in loaded
        for kind in kinds
        for seed in range(seeds if kind.trains else 1)
        if not _is_finished(out, task, kind, seed)
    ]
    rows = _local(data, work) if engine == "local" else run_on_cluster(data, work, keywords.get("address"))
    remaining = Remaining(work)
    for result in rows:
        write_row(out, result)
        if not keywords.get("quiet"):
            say(f"{_line(result)}  ({remaining.finish(*result.key)})", err=True)
    results = _kept(out, ours)
    others, notes = _comparable(theirs, ours)
    everything = BenchResults(results, others, notes)
    write_table(out / "results.parquet", results)
    write_durably(out / "table.md", everything.markdown().encode())
    write_durably(out / "table.html", everything.html().encode())
    return everything


def find_methods(methods: Sequence[str | type[Method]]) -> list[type[Method]]:
    """Return the classes of methods that are given by name or as classes; all of the table if there are none.

    Raises SpecError, with the nearest name, for an unknown one, and for two methods of one name.
    """
    found = []
    for method in methods or tuple(METHODS):
        if isinstance(method, str):
            if method not in METHODS:
                raise SpecError(f"method: found {method!r:.120}{did_you_mean(method, METHODS)}")
            method = METHODS[method]
        elif not (isinstance(method, type) and issubclass(method, Method)):
            raise SpecError(f"method: found {method!r:.120}; expected a name, or a subclass of Method")
        found.append(method)
    names = [method.name for method in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SpecError(f"method: {', '.join(sorted(twice))} occurs twice")
    return found


def find_zoos(tasks: Sequence[Task], zoos: Sequence[Zoo | str | Path]) -> dict[str, Zoo]:
    """Return the zoos of tasks by name. Raises ZooNotFoundError for one that is nowhere."""
    given = [zoo if isinstance(zoo, Zoo) else open_zoo(zoo) for zoo in zoos]
    found = {zoo.name: zoo for zoo in given}
    for task in tasks:
        for pinned in task.zoos:
            if pinned.name in found:
                continue
            folder = Path("zoos") / pinned.name
            if folder.is_dir() or pinned.hub is not None:
                found[pinned.name] = open_zoo(folder if folder.is_dir() else str(pinned.hub))
                continue
            raise ZooNotFoundError(
                f"{task.name}: needs the zoo {pinned.name}, which is not in {folder}; name its folder by --zoo, or "
                f"build it: {pinned.build_command}"
            )
    return found


def _distinct(tasks: Sequence[Task]) -> list[Task]:
    if not tasks:
        raise SpecError("bench: found no task; `zootools tasks` lists the bundled ones")
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SpecError(f"task: {', '.join(sorted(twice))} occurs twice")
    return list(tasks)


def _is_finished(out: Path, task: Task, kind: type[Method], seed: int) -> bool:
    """Return whether a folder has a row of this task, by the same code of the method."""
    path = row_file(out, task.name, kind.name, seed)
    if not path.exists():
        return False
    row, code = read_rows(path)[0], code_sha256(kind)
    same_code = code is not None and row.code_sha256 == code
    return same_code and row.key == (task.name, kind.name, seed) and row.task_sha256 == task.sha256


def _encoder(task: Task, kind: type[Method], seed: int) -> Hashable:
    """Return what names the encoder that a row shares with others of one process; None if it has none."""
    return (task.zoo.name, str(task.epochs), task.where, seed) if issubclass(kind, Pretrained) else None


def _local(data: dict[str, TaskData], work: Sequence[Work]) -> Iterator[Result]:
    for piece in work:
        yield run(data[piece.task], piece.kind, piece.seed)


def _line(result: Result) -> str:
    shown = "none" if result.score is None else f"{result.score:.4f}"
    seconds = result.fit_seconds + result.predict_seconds
    return f"{result.task}  {result.method}, seed {result.seed}: {shown}  {seconds:.1f} s"


def _kept(out: Path, tasks: dict[str, str]) -> list[Result]:
    """Return the rows of a folder that belong to these tasks, given by name with their hashes, in their order."""
    rows = [row for path in sorted((out / ROWS).glob("*.json")) for row in read_rows(path)]
    return sorted((row for row in rows if tasks.get(row.task) == row.task_sha256), key=lambda row: row.key)


def _comparable(theirs: dict[str, list[Result]], ours: dict[str, str]) -> tuple[dict[str, list[Result]], list[str]]:
    """Return the rows of others that belong to the same tasks, and a remark on those that do not."""
    kept, notes = {}, []
    for name, rows in theirs.items():
        kept[name] = [row for row in rows if ours.get(row.task) == row.task_sha256]
        other = sorted({row.task for row in rows if row.task in ours and ours[row.task] != row.task_sha256})
        if other:
            notes.append(f"{name}: its rows of {', '.join(other)} are of another population, and are not shown")
    return kept, notes
