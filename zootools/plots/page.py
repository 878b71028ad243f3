"""The interactive page of a zoo: one HTML file that needs neither a network nor other files.

The zoo may be untrusted. Its texts are in a block of JSON that the browser does not run, and are inserted as text; a
content security policy allows only our scripts, by their hashes, and no connections.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.errors import SpecError
from zootools.extras import optional
from zootools.plots.limits import beyond, frame, limits
from zootools.plots.portrait import Plane, Portrait, is_number, is_text, is_whole, labels, numbers
from zootools.plots.style import NAMES, PALETTE, is_logarithmic, looks, readable, title_of
from zootools.zoo import Zoo

MAX_PAGE_POINTS = 50_000
"""Maximal number of checkpoints in a page: WebGL draws them without stutter, and the file stays below 20 MB."""
MAX_F4 = 1e38
"""Coordinates with a larger magnitude are stored with 64 bits."""
MAX_CHOICES = 12
"""A filter lists the values of a number one by one up to this many."""
MAX_WHOLE = 1 << 53
"""The largest integer up to which JavaScript's numbers, which are float64, represent all integers."""
MAX_LABELS = 50
"""A property with more labels can be neither filtered nor coloured by."""
MAX_TEXT = 100
"""Maximal number of characters of a text in the page."""

_HERE = Path(__file__).parent
_HIDDEN = ("model_id", "stack", "row")


def page(portrait: Portrait) -> bytes:
    """Return the page of a zoo as HTML; ``portrait`` should be a sample of whole models.

    Equal portraits give equal bytes. Raises SpecError for a portrait without points in two dimensions.
    """
    get_plotlyjs = optional("plotly.offline", "the page of a zoo", "plots").get_plotlyjs
    if not portrait.planes:
        raise SpecError(f"{portrait.name}: has no checkpoint with finite weights to show")
    scripts = [get_plotlyjs(), (_HERE / "page.js").read_text("utf-8")]
    allowed = " ".join(f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'" for script in scripts)
    # plotly generates WebGL code at run time, hence unsafe-eval; its styles are inline.
    policy = (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    # In JSON, < occurs only inside strings; as an escape it cannot end the block.
    data = json.dumps(_content(portrait), allow_nan=False).replace("<", "\\u003c")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(readable(portrait.name))}</title>",
        f"<style>\n{(_HERE / 'page.css').read_text('utf-8')}</style>\n</head>\n<body>",
        (_HERE / "page.html").read_text("utf-8"),
        f'<script type="application/json" id="data">{data}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts).encode()


def _content(portrait: Portrait) -> dict[str, Any]:
    table = portrait.zoo.metadata
    encoded = table["model_id"].combine_chunks().dictionary_encode()
    names = labels(pa.chunked_array([encoded.dictionary]))
    return {
        "name": portrait.name[:MAX_TEXT],
        "sampling": portrait.sampling,
        "palette": PALETTE,
        "models": [name[:MAX_TEXT] for name in names],
        "model": _packed(encoded.indices.to_numpy(), "u4"),
        "planes": [_plane(label, where) for label, where in portrait.planes.items()],
        "columns": [*_columns(table), *_class_scores(portrait.zoo)],
        "colour": next(iter(reversed(portrait.properties)), None),
    }


def _plane(label: str, where: Plane) -> dict[str, Any]:
    borders = [frame(values) for values in where.points.T]
    outside = np.any([beyond(*of) for of in zip(where.points.T, borders, strict=True)], axis=0)
    clipped = [np.clip(of[0], *of[1]) for of in zip(where.points.T, borders, strict=True)]
    x, y = (_packed(values, "f4" if np.nanmax(np.abs(values), initial=0) < MAX_F4 else "f8") for values in clipped)
    return {
        "label": label,
        "title": NAMES.get(label, label),
        "method": where.method,
        "ranges": [_widened(*border) for border in borders],
        "beyond": int(outside.sum()),
        "missing": int(np.isnan(where.points).any(axis=1).sum()),
        "x": x,
        "y": y,
    }


def _widened(low: float, high: float) -> list[float]:
    """Return the ends of an axis, wide enough for whole points at its border."""
    margin = 0.02 * (high - low)
    return [low - margin, high + margin]


def _columns(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield every property: its values, and whether it can be filtered and coloured by."""
    for name in table.column_names:
        if name in _HIDDEN:
            continue
        about = {"name": name, "title": title_of(name)}
        if is_number(table[name]):
            yield about | _numbers(table[name], name)
        elif is_text(table[name]):
            texts = labels(table[name])
            order = list(looks(texts))
            code = {text: number for number, text in enumerate(order)}
            few = 1 < len(order) <= MAX_LABELS and name != "configuration_id"
            yield about | {
                "labels": [text[:MAX_TEXT] for text in order],
                "values": _packed(np.array([code[text] for text in texts]), "u4"),
                "filter": few,
                "colour": few and name != "split",
            }


def _class_scores(zoo: Zoo) -> Iterator[dict[str, Any]]:
    """Yield the F score of each class, by the names of the classes, as columns to colour by and to read."""
    if zoo.stored_spec is None or not 0 < len(zoo.class_names) <= MAX_CHOICES:
        return
    for number, name in enumerate(zoo.class_names):
        column = pc.list_element(zoo.metadata["test_f1"], number)
        about = {"name": f"test_f1_{number}", "title": readable(f"F score of {name}")}
        yield about | _numbers(column, about["name"]) | {"filter": False}


def _numbers(column: pa.ChunkedArray, name: str) -> dict[str, Any]:
    """Return the values of a numeric column, its filter and its colour scale.

    JavaScript rounds integers beyond 2^53, such as large seeds; for these the page also contains the digits as text.
    """
    values = numbers(column)
    known = np.unique(values[np.isfinite(values)])
    few = len(known) <= MAX_CHOICES and name != "epoch"
    found = {
        "values": _packed(values, _kind(known)),
        "choices": known.astype(_kind(known)).tolist() if few else None,
        "range": [float(known[0]), float(known[-1])] if len(known) else None,
        "scale": limits(values),
        "log": is_logarithmic(name, *limits(values)),
        "whole": is_whole(column),
        "filter": len(known) > 1,
        "colour": len(known) > 1,
    }
    if is_whole(column) and len(known) and np.abs(known).max() > MAX_WHOLE:
        encoded = column.dictionary_encode().combine_chunks()
        digits = [str(value) for value in encoded.dictionary.to_pylist()]
        few = 1 < len(digits) <= MAX_CHOICES and name != "epoch"
        codes = encoded.indices.fill_null(len(digits)).to_numpy()
        found |= {"digits": digits, "codes": _packed(codes, "u4"), "choices": digits if few else None}
        # A range cannot be filtered between two rounded ends.
        found |= {"filter": few, "colour": len(digits) > 1}
    return found


def _kind(values: npt.NDArray[np.float64]) -> str:
    """Return ``f4`` for measurements, or ``f8`` for values that float32 cannot represent, such as large seeds."""
    large = len(values) > 0 and np.abs(values).max() > (1 << 24)
    return "f8" if large else "f4"


def _packed(values: npt.NDArray[Any], kind: str) -> dict[str, str]:
    return {"type": kind, "data": _base64(values.astype(f"<{kind}").tobytes())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
