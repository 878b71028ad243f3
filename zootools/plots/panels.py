"""One pair of axes each: the parts that pictures are put together from."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from zootools.plots.portrait import Array, Plane, inliers, is_number, labels, numbers
from zootools.plots.style import DIVERGED, GREY, NUMBERS, OTHERS, PALETTE, looks, readable, title_of

MAX_BOXES = 26
"""Epochs that are shown as boxes at most."""
MAX_LINES = 200
"""Models that are shown as lines at most."""
CHARACTERS = 48
"""Letters that fit below a pair of axes, side by side."""
POINT = 5.0
"""Area of a point, in square points of 1/72 inch."""


def boxes(axes: Axes, table: pa.Table, column: str) -> str:
    """Draw a box per epoch over all models: quartiles, median, whiskers of 1.5 times the box, outliers.

    Returns what must be said of left-out epochs, an empty string when all are there.
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
        patch_artist=True,
        boxprops={"facecolor": "#CFE3F0", "edgecolor": PALETTE[0], "linewidth": 0.8},
        medianprops={"color": DIVERGED, "linewidth": 1.4},
        whiskerprops={"color": PALETTE[0], "linewidth": 0.8},
        capprops={"color": PALETTE[0], "linewidth": 0.8},
        flierprops={"marker": ".", "markersize": 2, "markeredgecolor": GREY, "rasterized": True},
    )
    _over_epochs(axes, shown)
    axes.set_ylabel(title_of(column))
    return f"{len(shown)} of {len(there)} epochs" if len(shown) < len(there) else ""


def scatter_numbers(axes: Axes, x: Array, y: Array, colours: Array, colour: str) -> None:
    """Draw points coloured by a number, with a colour bar that names it; grey where it is unknown."""
    known = np.isfinite(colours)
    axes.scatter(x[~known], y[~known], POINT, GREY, linewidths=0, rasterized=True)
    drawn = axes.scatter(
        x[known],
        y[known],
        POINT,
        colours[known],
        cmap=NUMBERS,
        norm=_norm(colours[known]),
        linewidths=0,
        alpha=0.8,
        rasterized=True,
    )
    figure = axes.figure
    bar = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=30)
    bar.set_alpha(1)
    bar.outline.set_visible(False)
    bar.set_label(title_of(colour))
    if np.equal(colours[known], colours[known].round()).all():
        bar.locator = MaxNLocator(integer=True)
    if isinstance(drawn.norm, LogNorm):
        plain_ticks(bar.ax.yaxis, colours[known])


def plain_ticks(axis: Axis, values: Array) -> None:
    """Label a logarithmic axis in plain digits, at 1, 2, 5, 10, ... where it does not span too many powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 1000 * values.min() else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _norm(values: Array) -> Normalize:
    """Powers of ten where positive values span more than two of them."""
    if len(values) and values.min() > 0 and values.max() > 100 * values.min():
        return LogNorm(values.min(), values.max())
    return Normalize(values.min(), values.max()) if len(values) else Normalize(0, 1)


def scatter_labels(axes: Axes, x: Array, y: Array, names: Sequence[str], title: str) -> None:
    """Draw points coloured by a label, in one random order so that none hides the others; the legend stands outside."""
    styles = looks(names)
    order = np.random.default_rng(0).permutation(len(x))
    for marker in dict.fromkeys(marker for _, marker in styles.values()):
        drawn = order[[styles[names[i]][1] == marker for i in order]]
        colours = [styles[names[i]][0] for i in drawn]
        width = 0.8 if marker == "x" else 0
        axes.scatter(x[drawn], y[drawn], POINT, colours, marker=marker, linewidths=width, alpha=0.8, rasterized=True)
    entries = legend_entries(names)
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=label)
        for label, (colour, marker) in entries
    ]
    below = axes.transAxes + ScaledTranslation(0, -0.25, axes.figure.dpi_scale_trans)  # of the axis' name
    axes.legend(
        handles=handles,
        title=title_of(title),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        ncols=_legend_columns(entries),
        alignment="left",
        borderaxespad=0,
        borderpad=0,
        columnspacing=1,
        handletextpad=0.2,
    )


def legend_entries(names: Sequence[str]) -> list[tuple[str, tuple[str, str]]]:
    """Return the labels that a legend shows, and how each looks; those that look alike are one entry at the end."""
    styles = looks(names)
    rest = sum(look == OTHERS for look in styles.values())
    entries = [(readable(name), look) for name, look in styles.items() if look != OTHERS]
    return [*entries, (f"{rest} others", OTHERS)] if rest else entries


def legend_height(table: pa.Table, colour: str) -> float:
    """Return how much room the legend of a property needs below its axes, in inches."""
    if is_number(table[colour]):
        return 0.0
    entries = legend_entries(labels(table[colour]))
    return 0.3 + 0.17 * -(-len(entries) // _legend_columns(entries))


def _legend_columns(entries: Sequence[tuple[str, tuple[str, str]]]) -> int:
    return max(1, CHARACTERS // (max(len(label) for label, _ in entries) + 6))


def plane(axes: Axes, where: Plane, table: pa.Table, colour: str, label: str) -> None:
    """Draw checkpoints where they lie in a plane, coloured by a property."""
    x, y = where.points.T
    if is_number(table[colour]):
        scatter_numbers(axes, x, y, numbers(table[colour]), colour)
    else:
        scatter_labels(axes, x, y, labels(table[colour]), colour)
    axes.set(xlabel=f"{where.method} 1 of {label}", ylabel=f"{where.method} 2 of {label}", xticks=[], yticks=[])
    outside = ~(_within(x, axes.set_xlim) & _within(y, axes.set_ylim))
    if outside.any():
        axes.set_title(f"{outside.sum():,} points lie far outside", fontsize=8, color="#555555", loc="right")


def _within(values: Array, set_limits: Callable[[float, float], object]) -> npt.NDArray[np.bool_]:
    """Return which values are no outliers, by far; where some are, limit the axis to the others."""
    inside = inliers(values)
    if not inside.all():
        low, high = values[inside].min(), values[inside].max()
        set_limits(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return inside


def mean_weights(axes: Axes, means: Array, table: pa.Table) -> None:
    """Draw test accuracy over the mean of all weights, coloured by epoch, with the correlation in the corner."""
    accuracy = numbers(table["test_accuracy"])
    scatter_numbers(axes, means, accuracy, numbers(table["epoch"]), "epoch")
    inside = _within(means, axes.set_xlim)
    known = np.isfinite(accuracy) & inside
    said = []
    if known.sum() > 2 and means[known].std() > 0 and accuracy[known].std() > 0:
        said.append(f"correlation {np.corrcoef(means[known], accuracy[known])[0, 1]:.2f}")
    if not inside.all():
        said.append(f"without {(~inside).sum():,} points far outside")
    axes.set_title(" ".join(said))
    axes.set(xlabel="mean of the weights", ylabel=title_of("test_accuracy"))


def curves(axes: Axes, table: pa.Table, column: str) -> str:
    """Draw a line per model over its epochs, the median over models, and in another colour those that diverged.

    Returns what must be said of models and of losses that are not shown as they are.
    """
    epochs, values = numbers(table["epoch"]), numbers(table[column])
    good = np.isfinite(values) & pc.equal(table["status"], "ok").to_numpy()
    ceiling = 10 * np.quantile(values[good], 0.995) if good.any() else np.inf
    clipped = bool((values > ceiling).any())
    values = np.minimum(values, ceiling)
    index = table["model_id"].combine_chunks().dictionary_encode()
    model = index.indices.to_numpy()
    diverged = np.zeros(len(index.dictionary), bool)
    diverged[model] = pc.not_equal(table["status"], "ok").to_numpy()
    chosen = [_spread(np.flatnonzero(diverged == kind), MAX_LINES) for kind in (False, True)]
    known = np.isfinite(values)
    for numbers_of, colour, width in zip(chosen, (PALETTE[0], DIVERGED), (0.5, 0.9), strict=True):
        lines = []
        for number in numbers_of:
            rows = np.flatnonzero(known & (model == number))
            rows = rows[np.argsort(epochs[rows])]
            lines.append(np.stack([epochs[rows], values[rows]], axis=1))
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=width, alpha=0.35, rasterized=True), autolim=True
        )
        if colour == DIVERGED:
            ends = np.array([line[-1] for line in lines if len(line)]).reshape(-1, 2)
            axes.plot(*ends.T, linestyle="", marker="x", color=colour, markersize=5)
    if good.any():
        there = np.unique(epochs[good])
        axes.plot(there, [np.median(values[good & (epochs == e)]) for e in there], color="black", linewidth=1.5)
    axes.autoscale_view()
    if (values[known] > 0).all():
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, values[known])
    _over_epochs(axes, epochs)
    axes.set_ylabel(title_of(column))
    drawn, models = sum(map(len, chosen)), len(diverged)
    said = f"sample of {drawn:,} of {models:,} models" if drawn < models else f"all {models:,} models"
    return said + (f"; {title_of(column)} above {ceiling:.3g} drawn at that height" if clipped else "")


def _over_epochs(axes: Axes, epochs: Array) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if epochs.min(initial=np.inf) == epochs.max(initial=-np.inf):
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)


def _spread(items: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most ``count`` items, evenly spread."""
    return items if len(items) <= count else items[np.linspace(0, len(items) - 1, count).round().astype(int)]
