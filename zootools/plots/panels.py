"""The contents of single axes, and the colours that several axes share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from zootools.plots.limits import Array, beyond, frame, limits
from zootools.plots.portrait import Plane, is_number, labels, numbers
from zootools.plots.style import DIVERGED, GREY, NUMBERS, OTHERS, PALETTE, is_logarithmic, looks, readable, title_of

MAX_BOXES = 26
"""Maximal number of epochs shown as boxes."""
MAX_LINES = 200
"""Maximal number of models shown as lines, of the diverged ones and of the others."""
CHARACTERS = 14
"""Characters of a legend per inch."""
_BOXES: dict[str, Any] = {
    "patch_artist": True,
    "boxprops": {"facecolor": "#CFE3F0", "edgecolor": PALETTE[0], "linewidth": 0.8},
    "medianprops": {"color": DIVERGED, "linewidth": 1.4},
    "whiskerprops": {"color": PALETTE[0], "linewidth": 0.8},
    "capprops": {"color": PALETTE[0], "linewidth": 0.8},
    "flierprops": {"marker": ".", "markersize": 2, "markeredgecolor": GREY, "rasterized": True},
}
"""The look of all box plots."""
POINT = 5.0
"""Area of a point, in square points of 1/72 inch."""


# --- axes and their ticks ----------------------------------------------------------------------------------------


def ticks(axis: Axis, values: Array) -> None:
    """Label an axis at a few round numbers in plain digits, or at integers if all values are integers."""
    values = values[np.isfinite(values)]
    whole = bool(len(values)) and bool(np.equal(values, values.round()).all())
    if whole and values.min() == values.max():
        axis.set_major_locator(FixedLocator([float(values[0])]))
    else:
        count = 6 if whole or isinstance(axis, YAxis) else 4  # numbers like 0.495 are wide
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10], integer=whole))
    axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axis: Axis, values: Array) -> None:
    """Label a logarithmic axis in plain digits, at 1, 2, 5, 10, ... unless it spans three powers of ten or more."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 1000 * values.min() else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def clipped(axes: Axes, x: Array, y: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Limit axes by `frame`; return the points, clipped to the border, and a mask of the clipped ones."""
    inside: list[Array] = []
    out = np.zeros(len(x), bool)
    for values, set_limits, axis in ((x, axes.set_xlim, axes.xaxis), (y, axes.set_ylim, axes.yaxis)):
        low, high = frame(values)
        set_limits(low, high)
        ticks(axis, values)
        inside.append(np.clip(values, low, high))
        out |= beyond(values, (low, high))
    return inside[0], inside[1], out


def at_border(out: npt.NDArray[np.bool_]) -> str:
    """Return the note about points that are drawn at the border; an empty string if there are none."""
    return f"{out.sum():,} beyond, at the border" if out.any() else ""


# --- colours -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colours:
    """The colours of a property, shared by all axes of a group: a colour scale for numbers, a colour per label else."""

    name: str
    values: Array
    """All finite values of a numeric property; empty for labels."""
    looks: dict[str, tuple[str, str]]
    """Colour and marker by label; empty for a numeric property."""

    @classmethod
    def of(cls, tables: Sequence[pa.Table], name: str) -> "Colours":
        """Return the colours of a column over all checkpoints of some tables."""
        if all(is_number(table[name]) for table in tables):
            values = np.concatenate([numbers(table[name]) for table in tables])
            return cls(name, values[np.isfinite(values)], {})
        return cls(name, np.empty(0), looks([label for table in tables for label in labels(table[name])]))

    @property
    def norm(self) -> Normalize:
        """The scale of numbers (`style.is_logarithmic`)."""
        low, high = limits(self.values)
        if is_logarithmic(self.name, low, high):
            return LogNorm(low, high)
        return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)

    @property
    def entries(self) -> list[tuple[str, tuple[str, str]]]:
        """The labels of the legend with colour and marker; labels without a colour of their own are one last entry."""
        rest = sum(look == OTHERS for look in self.looks.values())
        entries = [(readable(name), look) for name, look in self.looks.items() if look != OTHERS]
        return [*entries, (f"{rest} others", OTHERS)] if rest else entries

    def columns(self, width: float) -> int:
        """Return the number of columns of a legend that is ``width`` inches wide."""
        return max(1, int(CHARACTERS * width) // (max(len(label) for label, _ in self.entries) + 4))

    def height(self, width: float) -> float:
        """Return the height of the legend below its axes, in inches; 0 for numbers, which have a colour bar instead."""
        return 0.4 + 0.2 * -(-len(self.entries) // self.columns(width)) if self.looks else 0.0

    def scatter(self, axes: Axes, x: Array, y: Array, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Draw points; return a mask of those that are drawn at the border because they are beyond it."""
        x, y, out = clipped(axes, x, y)
        # A random order, so that no label hides the others.
        order = np.random.default_rng(0).permutation(len(x))
        style: dict[str, Any] = {"rasterized": True, "clip_on": not out.any(), "in_layout": False, "zorder": 3}
        if self.looks:
            names = labels(table[self.name])
            for marker in dict.fromkeys(marker for _, marker in self.looks.values()):
                drawn = order[[self.looks[names[i]][1] == marker for i in order]]
                colours = [self.looks[names[i]][0] for i in drawn]
                width = 0.8 if marker == "x" else 0
                axes.scatter(x[drawn], y[drawn], POINT, colours, marker=marker, linewidths=width, alpha=0.8, **style)
        else:
            values = numbers(table[self.name])
            known, unknown = order[np.isfinite(values[order])], order[~np.isfinite(values[order])]
            style |= {"linewidths": 0}
            axes.scatter(x[unknown], y[unknown], POINT, GREY, **style)
            axes.scatter(x[known], y[known], POINT, values[known], cmap=NUMBERS, norm=self.norm, alpha=0.8, **style)
        return out

    def bar(self, row: Sequence[Axes]) -> None:
        """Draw the colour bar beside a row of axes, with a triangle if values are beyond it; one value is a note."""
        low, high = limits(self.values)
        if low == high:
            said = f"{title_of(self.name)} {low:.6g} only"
            row[0].set_title("\n".join(filter(None, [row[0].get_title("left"), said])))
            return
        norm = self.norm
        below, above = (self.values < low).any(), (self.values > high).any()
        extend = (("neither", "max"), ("min", "both"))[int(below)][int(above)]
        bar = row[0].figure.colorbar(
            ScalarMappable(norm, NUMBERS), ax=list(row), pad=0.02, aspect=30, extend=extend, label=title_of(self.name)
        )
        bar.outline.set_visible(False)
        if isinstance(norm, LogNorm):
            log_ticks(bar.ax.yaxis, np.array([low, high]))
        else:
            ticks(bar.ax.yaxis, self.values)

    def explain(self, axes: Axes) -> None:
        """Draw the colour bar beside the only axes that have these colours, or the legend below the whole figure."""
        if not self.looks:
            self.bar([axes])
            return
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.set_figheight(figure.get_figheight() + self.height(figure.get_figwidth()))
        figure.legend(
            handles=self._handles,
            title=title_of(self.name),
            loc="outside lower center",
            ncols=self.columns(figure.get_figwidth()),
        )

    @property
    def _handles(self) -> list[Line2D]:
        return [
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=label)
            for label, (colour, marker) in self.entries
        ]

    def legend(self, axes: Axes, width: float) -> None:
        """Draw the legend of labels into empty axes that are ``width`` inches wide."""
        axes.axis("off")
        axes.legend(
            handles=self._handles,
            title=title_of(self.name),
            loc="upper left",
            ncols=self.columns(width),
            alignment="left",
            borderaxespad=0,
            borderpad=0,
            columnspacing=1,
            handletextpad=0.2,
        ).set_in_layout(False)


# --- the contents of one pair of axes ----------------------------------------------------------------------------


def boxes(axes: Axes, table: pa.Table, column: str) -> str:
    """Draw a box per epoch over all models: quartiles, median, whiskers of 1.5 times the box, outliers.

    Returns the note about omitted epochs, or an empty string if all are shown.
    """
    epochs, values = numbers(table["epoch"]), numbers(table[column])
    known = np.isfinite(values)
    there = np.unique(epochs[known])
    shown = there[np.unique(np.linspace(0, len(there) - 1, MAX_BOXES).round().astype(int))]
    spacing = float(np.diff(shown).min()) if len(shown) > 1 else 1.0
    axes.boxplot(
        [values[known & (epochs == epoch)] for epoch in shown],
        positions=shown,
        widths=0.6 * spacing,
        manage_ticks=False,
        **_BOXES,
    )
    ticks(axes.yaxis, values)
    _over_epochs(axes, shown)
    axes.set_ylabel(title_of(column))
    return f"{len(shown)} of {len(there)} epochs" if len(shown) < len(there) else ""


def class_boxes(axes: Axes, scores: Array, names: Sequence[str]) -> None:
    """Draw a box per class over checkpoints, as `boxes` does; ``scores`` is float64 ``[checkpoints, classes]``."""
    places = np.arange(len(names))
    axes.boxplot(list(scores.T), positions=places, widths=0.6, manage_ticks=False, **_BOXES)
    shown = [readable(name) for name in names]
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, shown, **(slanted if max(map(len, shown)) > 2 else {}))
    axes.set_xlim(-0.5, len(names) - 0.5)
    ticks(axes.yaxis, scores.ravel())


def plane(axes: Axes, where: Plane, table: pa.Table, colours: Colours, label: str) -> str:
    """Draw checkpoints in two dimensions; return the note about those at the border and those without coordinates."""
    x, y = where.points.T
    out = colours.scatter(axes, x, y, table)
    axes.set(xlabel=f"{where.method} 1 of {label}", ylabel=f"{where.method} 2 of {label}", xticks=[], yticks=[])
    nowhere = np.isnan(where.points).any(axis=1).sum()
    return "\n".join(filter(None, [at_border(out), nowhere and f"{nowhere:,} not shown: {label} is not finite"]))


def mean_weights(axes: Axes, means: Array, table: pa.Table, colours: Colours) -> str:
    """Draw test accuracy over the mean of all weights; return their correlation and the note about its points."""
    accuracy = numbers(table["test_accuracy"])
    known = np.isfinite(accuracy)
    means, accuracy = means[known], accuracy[known]
    out = colours.scatter(axes, means, accuracy, table.filter(pa.array(known)))
    axes.set(xlabel="mean of the weights", ylabel=title_of("test_accuracy"))
    said = at_border(out)
    means, accuracy = means[~out], accuracy[~out]
    if len(means) > 2 and means.std() > 0 and accuracy.std() > 0:
        correlation = f"correlation {np.corrcoef(means, accuracy)[0, 1]:.2f}"
        return f"{correlation} within\n{said}" if said else correlation
    return said


def curves(axes: Axes, table: pa.Table, column: str) -> str:
    """Draw a line per model over its epochs, diverged models in another colour, and the median of the others.

    Returns a caption with the number of models drawn.
    """
    epochs, values = numbers(table["epoch"]), numbers(table[column])
    known = np.isfinite(values)
    good = known & pc.equal(table["status"], "ok").to_numpy()
    log, low, high = _loss_range(values[known], values[good] if good.any() else values[known])
    outside = beyond(values, (low, high))
    values = np.clip(values, low, high)
    index = table["model_id"].combine_chunks().dictionary_encode()
    model = index.indices.to_numpy()
    diverged = np.zeros(len(index.dictionary), bool)
    diverged[model] = pc.not_equal(table["status"], "ok").to_numpy()
    chosen = [_spread(np.flatnonzero(diverged == kind), MAX_LINES) for kind in (False, True)]
    for models, colour, width in zip(chosen, (PALETTE[0], DIVERGED), (0.5, 0.9), strict=True):
        rows = [np.flatnonzero(known & (model == number)) for number in models]
        ordered = [found[np.argsort(epochs[found])] for found in rows]
        lines = [np.stack([epochs[found], values[found]], axis=1) for found in ordered if len(found)]
        _draw_lines(axes, lines, colour, width)
    if good.any():
        there = np.unique(epochs[good])
        medians = [np.median(values[good & (epochs == epoch)]) for epoch in there]
        axes.plot(there, medians, color="black", linewidth=1.5, marker="_" if len(there) == 1 else "")
    axes.set_yscale("log" if log else "linear")
    axes.set_ylim(low, high)
    (log_ticks if log else ticks)(axes.yaxis, np.array([low, high]))
    _over_epochs(axes, epochs)
    axes.set_ylabel(title_of(column))
    axes.set_title(at_border(outside))
    drawn, count = sum(map(len, chosen)), len(diverged)
    return f"sample of {drawn:,} of {count:,} models" if drawn < count else f"all {count:,} models"


def _loss_range(values: Array, typical: Array) -> tuple[bool, float, float]:
    """Return whether an axis of losses is logarithmic, and its border."""
    if (values > 0).all() and typical.max() > 10 * typical.min():
        low, high = (10**end for end in frame(np.log10(values), np.log10(typical)))
        return True, low, high
    return False, *frame(values, typical)


def _draw_lines(axes: Axes, lines: Sequence[Array], colour: str, width: float) -> None:
    """Draw the lines of models, each ``[epochs, 2]``; a single point is a dot, and a diverged model ends with an x."""
    longer = [line for line in lines if len(line) > 1]
    axes.add_collection(LineCollection(longer, colors=colour, linewidths=width, alpha=0.35, rasterized=True))
    alone = np.array([line[0] for line in lines if len(line) == 1]).reshape(-1, 2)
    axes.plot(*alone.T, linestyle="", marker=".", color=colour, markersize=4, alpha=0.35)
    if colour == DIVERGED:
        ends = np.array([line[-1] for line in lines]).reshape(-1, 2)
        axes.plot(*ends.T, linestyle="", marker="x", color=colour, markersize=5, clip_on=False, in_layout=False)


def _over_epochs(axes: Axes, epochs: Array) -> None:
    axes.set_xlabel("epoch")
    ticks(axes.xaxis, epochs)
    if len(epochs) and epochs.min() == epochs.max():
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)


def _spread(items: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most ``count`` items, evenly spread."""
    return items if len(items) <= count else items[np.linspace(0, len(items) - 1, count).round().astype(int)]
