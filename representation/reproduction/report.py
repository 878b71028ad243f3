"""The report of a reproduction: ``reproduction.md``, ``reproduction.html`` (self-contained), ``reproduction.parquet``.

Beside it is ``zoos.json`` with the specification, digest and builds of every zoo. All content comes from result files,
from zoos and from paper.yaml; nothing depends on the time of writing.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from representation.reproduction.conclusions import compared, conclusions
from representation.reproduction.grids import FilledItem, colour_of
from representation.reproduction.items import ITEMS, RELEASED, Job
from representation.reproduction.job_costs import training_steps
from representation.reproduction.state import FilledCell, ReproductionState
from representation.reproduction.work import machine
from representation.reproduction.zoos import ZOOS_REMARK, build_seconds, zoo_records, zoo_rows
from zootools import __version__
from zootools.filesystem.files import durable_path, write_durably
from zootools.hashing import pretty_json
from zootools.progress import duration

MARK = "<!-- Made by `zootools reproduce`; do not edit. -->"
"""The first line of every report."""
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("row", pa.string()),
        ("column", pa.string()),
        ("zoo", pa.string()),  # that encoder and probes were fitted on; null in a table of words, as are the next five
        ("evaluated_on", pa.string()),
        ("job", pa.string()),
        ("method", pa.string()),
        ("target", pa.string()),
        ("metric", pa.string()),
        ("recipe", pa.string()),
        ("zoo_sha256", pa.string()),  # of the manifest of the zoo that encoder and probes were fitted on
        ("seconds", pa.float64()),  # processor time of the job, the mean over seeds
        ("machine", pa.string()),
        ("ours", pa.float64()),  # the mean over seeds; R2 and accuracy as fractions
        ("interval", pa.float64()),  # half the width of its 95 % interval
        ("seeds", pa.int64()),
        ("paper", pa.float64()),
        ("bound", pa.float64()),  # R2 of the best linear code of the same length, of a reconstruction
        ("our_words", pa.string()),
        ("paper_words", pa.string()),
        ("reason", pa.string()),  # why there is no value of ours
        ("note", pa.string()),
    ]
)


Row = dict[str, str | int]
"""A row of a table, by the titles of its columns."""


def write_report(state: ReproductionState) -> None:
    """Write the files into the folder of the reproduction."""
    out = state.workspace.out
    out.mkdir(parents=True, exist_ok=True)
    sections = [FilledItem.of(state, item) for item in state.items]
    listings = _listings(state)
    write_durably(out / "reproduction.md", markdown(state, sections, listings).encode())
    write_durably(out / "reproduction.html", _html(state, sections, listings).encode())
    with durable_path(out / "reproduction.parquet") as temporary:
        pq.write_table(_table(state), temporary)
    write_durably(out / "zoos.json", pretty_json(zoo_records(state)))


@dataclass(frozen=True)
class Summary:
    """The outcome of a reproduction in numbers."""

    scale: str
    cells: int
    without: int
    """Cells without a value of ours."""
    reasons: dict[str, int]
    """Number of those cells by reason, the most frequent first."""
    pictures_without: dict[str, str]
    """Pictures that were not drawn, and why."""
    files: list[str]
    """The report, in each of its forms."""


def summary(state: ReproductionState) -> Summary:
    """Count the cells with and without a value of ours."""
    filled = _cells(state)
    counted = Counter(cell.reason for cell in filled if cell.reason)
    pictures = {name: picture.reason for name, picture in state.pictures.items() if picture.reason}
    files = [str(state.workspace.out / f"reproduction.{ending}") for ending in ("html", "md", "parquet")]
    reasons = dict(counted.most_common())
    return Summary(state.workspace.scale.name, len(filled), counted.total(), reasons, pictures, files)


def _cells(state: ReproductionState) -> list[FilledCell]:
    return [cell for item in state.items for grid in state.filled(item) for cell in grid]


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(state: ReproductionState, sections: Sequence[FilledItem], listings: Sequence["Listing"]) -> str:
    """Return the report as Markdown."""
    lines = [MARK, "", f"# {_title(state)}", "", state.workspace.scale.description, ""]
    lines += [line for text in _about(state) for line in (text, "")]
    lines += [f"    {_command(state)}", "", *(line for text in _remarks(state) for line in (text, ""))]
    for section in sections:
        lines += [f"## {section.item.heading}", "", *section_lines(section)]
    for listing in listings:
        lines += [f"## {listing.title}", "", *_rows(listing.rows), "", *[listing.remark, ""] * bool(listing.remark)]
    return "\n".join(lines)


LEGEND = (
    "A cell reads *ours < the paper's*, or >; ± is half the 95 % interval of the mean over seeds, where there is more "
    "than one. A letter in brackets refers to a remark below the table; a cell without a value of ours has only the "
    "letter and the paper's value."
)
LEARNED = (
    "Every learned cell is there twice, beside the same value of the paper: by our recipe, which shows what can be "
    f"reached, and by the {RELEASED} with the recipe of its released code, which shows what the paper's method gives "
    "for the number of steps in the table of encoders. PCA beside a reconstruction is the R2 of the best linear code "
    "of the same length on the same permuted networks."
)
TETRIS = (
    "The images of TETRIS-SEED and TETRIS-HYP are ours: the paper publishes four shapes, but neither their number nor "
    "their noise. They were chosen so that the paper's baselines (raw weights, their statistics, PCA) and the best "
    "linear codes score as published (benchmarks/calibrate_tetris.py); of the learned values, F scores decided how "
    "noisy the test images are. Learned values therefore compare methods on a similar zoo, not on the paper's own."
)
"""What every report with a TETRIS zoo says."""


def section_lines(section: FilledItem) -> list[str]:
    """Return the lines below the heading of an item."""
    lines: list[str] = []
    for grid in section.grids:
        head = ["", *grid.columns]
        body = [[row, *(cell.markdown if cell else "-" for cell in cells)] for row, cells in grid.rows]
        lines += [*_rows([dict(zip(head, line, strict=True)) for line in body]), ""]
    if section.file is not None:
        lines += [f"![{section.item.heading}](reproduction/{section.file.name})", ""]
    remarks = [f"[{letter}] {text}" for text, letter in section.marks.texts.items()]
    if any(grid.has_gaps for grid in section.grids):
        remarks.append("-: neither this report nor the paper has a value here.")
    for remark in [*section.remarks, *remarks]:
        lines += [remark, ""]
    return lines


def _rows(rows: Sequence[Row]) -> list[str]:
    head = [str(name).replace("|", "\\|") for name in rows[0]]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(str(value).replace("|", "\\|") for value in row.values()) + " |" for row in rows]


def _remarks(state: ReproductionState) -> list[str]:
    """Return the paragraphs before the first table: how to read the report, and its limits."""
    learned = any(job.learns for item in state.items for job in item.jobs)
    shown = {zoo for item in state.items for zoo in item.needed_zoos} | {item.name for item in state.items}
    tetris = bool(shown & {"tetris_seed", "tetris_hyp", "figure6"})
    return [LEGEND, *[LEARNED] * learned, *[TETRIS] * tetris]


# --- content of both forms --------------------------------------------------------------------------------------------


def _title(state: ReproductionState) -> str:
    return f"The paper's tables and figures again, at scale {state.workspace.scale.name}"


def _command(state: ReproductionState) -> str:
    names = [item.name for item in state.items]
    words = ["zootools reproduce", *(["all"] if len(names) == len(ITEMS) else names)]
    words += [f"--scale {state.workspace.scale.name}"]
    words += [f"--seeds {state.seeds}"] * (state.seeds > 1) + ["--data DIR"] * (state.data is not None)
    return " ".join(words)


def _about(state: ReproductionState) -> list[str]:
    """Return sentences on the cells, and on versions, machine and time."""
    found = [result for _, result in state.results()]
    wall = sum(build_seconds(state.workspace.zoo(zoo)) for zoo in state.zoos)
    machines = " and ".join(dict.fromkeys(result.machine for result in found)) or machine()
    text = f"zootools {__version__} with torch {torch.__version__} on {machines}."
    if found:
        cpu = duration(sum(result.cpu_seconds for result in found))
        text += f" {len(found)} jobs (training and probing, one thread each) took {cpu} of processor time"
        text += f", the zoos {duration(wall)} on all cores." if wall else "."
    filled = _cells(state)
    there = sum(cell.ours is not None for cell in filled)
    counts = f"{there} of {len(filled)} cells have a value of ours. {compared(filled)}".strip() if filled else ""
    tried = "`docs/log.md` in the repository records what else was tried, with negative results."
    return [*filter(None, [counts]), text, tried]


class Listing(NamedTuple):
    """A table at the end."""

    title: str
    rows: list[Row]
    remark: str = ""
    """Below the table."""


def _listings(state: ReproductionState) -> list[Listing]:
    """Return the tables at the end that have rows."""
    every = (
        Listing("Conclusions of the paper", _conclusions(state)),
        Listing("The zoos", zoo_rows(state), ZOOS_REMARK),
        Listing("Checkpoints that are left out", _notes(state, "left_out")),
        Listing("Remarks on the zoos and their probes", _notes(state, "remark")),
        Listing("The encoders", _jobs(state)),
    )
    return [listing for listing in every if listing.rows]


def _conclusions(state: ReproductionState) -> list[Row]:
    """Return a row for each conclusion of the paper that the cells decide."""
    return [
        {
            "conclusion": found.statement,
            "by": found.places,
            "encoders": found.of or "-",
            "holds here in": found.verdict(),
            "in the paper in": found.verdict(paper=True),
            "our numbers": found.numbers(),
        }
        for found in conclusions(cell for item in state.items for grid in state.filled(item) for cell in grid)
    ]


def _notes(state: ReproductionState, kind: str) -> list[Row]:
    """Return a row for each remark of a kind on a zoo."""
    notes = [note for _, found in state.results() for note in found.notes if note.kind == kind]
    return [{"zoo": zoo, "what": text} for zoo, text in dict.fromkeys((note.zoo, note.text) for note in notes)]


def _jobs(state: ReproductionState) -> list[Row]:
    """Return a row for each encoder."""
    rows: list[Row] = []
    for job, found in state.results():
        if job.learns:
            name, changes = state.workspace.scale.recipe_words(job)
            recipe = state.workspace.scale.recipe_of(job)
            rows.append(
                {
                    "encoder": job.name,
                    "seed": found.identity.seed,
                    "checkpoints": f"{found.counts['train_checkpoints']:,}",
                    "steps": f"{training_steps(recipe, found.counts['train_checkpoints']):,}",
                    "processor time": duration(found.cpu_seconds),
                    "machine": found.machine,
                    "recipe": " ".join((name, *changes)),
                }
            )
    return rows


# --- HTML and Parquet -------------------------------------------------------------------------------------------------


def _html(state: ReproductionState, sections: Sequence[FilledItem], listings: Sequence[Listing]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pictures = {
        section.item.name: base64.b64encode(section.file.read_bytes()).decode() for section in sections if section.file
    }
    return environment.get_template("report.html.jinja").render(
        mark=MARK,
        title=_title(state),
        scale=state.workspace.scale,
        about=_about(state),
        remarks=_remarks(state)[1:],
        command=_command(state),
        sections=sections,
        pictures=pictures,
        listings=listings,
        colours=[colour_of(share) for share in (-1, -0.5, -0.1, 0.1, 0.5, 1)],
    )


def _effort(state: ReproductionState, job: Job) -> dict[str, str | float]:
    """Return the columns of a job: its zoo, processor seconds and machine; none if it was not done."""
    found = [result for seed in range(state.seeds) if (result := state.found(job, seed)) is not None]
    if not found:
        return {}
    return {
        "zoo_sha256": found[0].identity.zoos[job.zoo],
        "seconds": sum(result.cpu_seconds for result in found) / len(found),
        "machine": " and ".join(dict.fromkeys(result.machine for result in found)),
    }


def _table(state: ReproductionState) -> pa.Table:
    rows = []
    for item in state.items:
        for filled in (cell for grid in state.filled(item) for cell in grid):
            row = {"item": item.name, "row": filled.row, "column": filled.column, "interval": filled.interval}
            row |= {"seeds": filled.seeds, "reason": filled.reason, "note": filled.note}
            if (cell := filled.cell) is not None:
                name, changes = state.workspace.scale.recipe_words(cell.job)
                row |= {"zoo": cell.job.zoo, "evaluated_on": cell.evaluated_on or cell.job.zoo, "job": cell.job.name}
                row |= {"method": cell.method, "target": cell.target, "metric": cell.metric}
                row |= {"recipe": " ".join((name, *changes)), "ours": filled.ours, "paper": filled.paper}
                row |= {"bound": filled.bound, **_effort(state, cell.job)}
            else:
                row |= {"our_words": filled.ours, "paper_words": filled.paper}
            rows.append(row)
    return pa.Table.from_pylist(rows, SCHEMA)
