"""The table of results as text: Markdown for people and repositories, HTML for browsers."""

import html
from collections.abc import Iterable, Sequence

from representation.benchmark.results import Summary
from zootools.text import printable

COLUMNS = (
    *("method", "score", "ceiling", "majority", "± over models", "seeds", "invariant"),
    *("seconds", "parameters", "peak MB", "whose"),
)
NOTE = (
    "score: mean on the test split, ± half of the 95 % interval over seeds where several have one; ceiling: the score "
    "of a predictor without a mistake, and for kendall_tau without ties; majority: share of the test networks at the "
    "most frequent value; ± over models: half of the 95 % interval over other test models; seconds: of a processor, "
    "fitting and predicting; peak MB: of memory beyond what the process had before, which earlier rows of one call may "
    "have left to it."
)


def markdown(summaries: Sequence[Summary]) -> str:
    """Return a table for each task, the best score first, as Markdown."""
    lines = []
    for task, entries in _by_task(summaries):
        lines += [f"### {_escaped(task)}, {entries[0].metric}", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(_escaped(cell) for cell in _cells(entry))} |" for entry in entries]
        lines.append("")
    return "\n".join([*lines, NOTE, ""])


def page(summaries: Sequence[Summary]) -> str:
    """Return the same tables as an HTML page, without anything that runs or is fetched."""
    parts = []
    for task, entries in _by_task(summaries):
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(entry)) for entry in entries]
        parts.append(
            f"<h2>{html.escape(printable(task))}, {entries[0].metric}</h2>\n<table>\n"
            f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in COLUMNS)}</tr>\n"
            + "".join(f"<tr>{row}</tr>\n" for row in rows)
            + "</table>"
        )
    style = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:2px 8px}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Benchmark</title>'
        f"<style>{style}</style></head><body>\n<h1>Benchmark</h1>\n"
        + "\n".join(parts)
        + f"\n<p>{html.escape(NOTE)}</p>"
        "\n</body></html>\n"
    )


def _by_task(summaries: Sequence[Summary]) -> Iterable[tuple[str, list[Summary]]]:
    """Yield each task with its entries, the best score first, those without a score last."""
    for task in dict.fromkeys(entry.task for entry in summaries):
        entries = [entry for entry in summaries if entry.task == task]
        yield task, sorted(entries, key=lambda entry: (entry.score is None, -(entry.score or 0), entry.method))


def _cells(entry: Summary) -> list[str]:
    score = f"none: {entry.reason}" if entry.score is None else f"{entry.score:.3f}"
    if entry.score is not None and entry.over_seeds is not None:
        score += f" ± {entry.over_seeds:.3f}"
    if entry.score is not None and entry.reason:
        score += f" ({entry.reason})"
    cells = [
        entry.method,
        score,
        "" if entry.ceiling is None else f"{entry.ceiling:.3f}",
        f"{entry.majority:.3f}",
        "" if entry.over_models is None else f"{entry.over_models:.3f}",
        str(entry.seeds),
        "yes" if entry.invariant else "no",
        f"{entry.seconds:,.0f}" if entry.seconds >= 10 else f"{entry.seconds:.2g}",
        "" if entry.parameters is None else f"{entry.parameters:,}",
        "" if entry.peak_bytes is None else f"{entry.peak_bytes / 1e6:,.0f}",
        entry.source or "ours",
    ]
    return [printable(cell) for cell in cells]


def _escaped(text: str) -> str:
    """Return text as Markdown shows it: no HTML, no cell of its own."""
    return html.escape(printable(text), quote=False).replace("|", "\\|").replace("`", "\\`")
