"""The pictures of a zoo as matplotlib Figures, made without pyplot and its global state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zootools.plots import panels
from zootools.plots.panels import Colours
from zootools.plots.portrait import Portrait, numbers
from zootools.plots.style import DIVERGED, NAMES, PALETTE, readable, styled, title_of

WIDTH, HEIGHT = 3.4, 2.9
"""Size of one pair of axes, in inches."""
TITLE = 0.4
"""Height of the two lines of the title, in inches."""
WIDEST = 12.0
"""Maximal width of a picture, in inches: on a page 900 pixels wide, a font of 9 points is then 9 pixels high."""


def accuracy(portrait: Portrait) -> Figure:
    """Draw box plots of the test accuracy over epochs."""
    with styled():
        figure, (axes,) = _figure(1, 6.4, 3.4)
        left_out = panels.boxes(axes, portrait.shown, "test_accuracy")
        return _titled(figure, portrait, "test accuracy over epochs", portrait.everything, left_out)


def mean_weight(portrait: Portrait) -> Figure:
    """Draw the test accuracy over the mean weight."""
    with styled():
        figure, (axes,) = _figure(1, 5.0, 3.6)
        colours = Colours.of([portrait.zoo.metadata], portrait.colour or "epoch")
        axes.set_title(panels.mean_weights(axes, portrait.mean_weights, portrait.zoo.metadata, colours))
        colours.explain(axes)
        return _titled(figure, portrait, "test accuracy over mean weight", portrait.sampling)


def gap(portrait: Portrait) -> Figure:
    """Draw the generalisation gap over epochs, and over the test accuracy."""
    with styled():
        figure, (left, right) = _figure(2, 4.0, 3.3)
        left_out = panels.boxes(left, portrait.shown, "generalization_gap")
        table, colours = portrait.zoo.metadata, Colours.of([portrait.zoo.metadata], portrait.colour or "epoch")
        x, y = numbers(table["test_accuracy"]), numbers(table["generalization_gap"])
        right.set_title(panels.at_border(colours.scatter(right, x, y, table)))
        right.set_xlabel(title_of("test_accuracy"))
        colours.explain(right)
        for axes in (left, right):
            axes.set_ylabel("generalisation gap\n(training minus test accuracy)")
        return _titled(
            figure, portrait, "generalisation gap", left_out and f"left: {left_out}", f"right: {portrait.sampling}"
        )


def class_scores(portrait: Portrait) -> Figure:
    """Draw box plots of the F score of every class at the last checkpoint of each model.

    The classes have their names, or their numbers where the zoo does not have the names.
    """
    scores, names = portrait.class_scores
    with styled():
        figure, (axes,) = _figure(1, min(WIDEST, max(4.8, 1.2 + 0.36 * len(names))), 3.4)
        panels.class_boxes(axes, scores, names)
        axes.set(xlabel="class", ylabel="F score on the test images")
        last = f"the last checkpoints of {len(scores):,} models"
        return _titled(figure, portrait, "F score of each class", last + portrait.diverged_note)


def losses(portrait: Portrait) -> Figure:
    """Draw the losses of every model over its epochs; diverged models are marked."""
    with styled():
        columns = [name for name in LOSSES if not portrait.lacks(name)]
        figure, row = _figure(len(columns), 4.0, 3.3)
        for axes, column in zip(row, columns, strict=True):
            said = panels.curves(axes, portrait.metadata, column)
            axes.set_ylabel(f"{title_of(column)}\n(mean cross-entropy, nats)")
        handles = []
        if not portrait.all_diverged:
            handles.append(Line2D([], [], color=PALETTE[0], linewidth=1, label="a model"))
            handles.append(Line2D([], [], color="black", linewidth=1.5, label="median"))
        if portrait.diverged:
            label = "a model that diverged, x its last checkpoint"
            handles.append(Line2D([], [], color=DIVERGED, linewidth=1, marker="x", label=label))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return _titled(figure, portrait, "losses over epochs", said)


LOSSES = ("train_loss", "validation_loss", "test_loss")


def embedding(portrait: Portrait, label: str) -> Figure:
    """Draw one representation (a label of `Portrait.planes`) in two dimensions, once for every property that varies."""
    with styled():
        groups = [_planes([portrait], [label], colour) for colour in portrait.properties]
        figure = _drawn(_rows(groups, 2))
        method = portrait.planes[label].method
        return _titled(figure, portrait, f"{method} of {NAMES.get(label, label)}", portrait.sampling)


def figure_4(portraits: Sequence[Portrait]) -> Figure:
    """Draw the weight spaces of several zoos side by side, coloured by initialisation, as in the paper's Figure 4.

    `Portrait.colour` of the first zoo replaces the initialisation.
    """
    with styled():
        colour = portraits[0].colour or "init"
        return _drawn([[_planes(portraits, ["W"], colour, [_heading(portrait) for portrait in portraits])]])


def figure_7(portraits: Sequence[Portrait]) -> Figure:
    """Draw the paper's Figure 7, with one column per zoo.

    The rows are accuracy over epochs, accuracy over mean weight, and the weight space coloured by activation,
    initialisation and epoch, if these vary, or by `Portrait.colour` of the first zoo. For a single zoo all axes are
    side by side.
    """
    with styled():
        chosen = portraits[0].colour
        rows = ("activation", "init", "epoch") if chosen is None else (chosen,)
        names = [name for name in rows if any(name in portrait.properties for portrait in portraits)]
        points = Colours.of([portrait.zoo.metadata for portrait in portraits], chosen or "epoch")
        groups = [
            AxesGroup([partial(_accuracies, portrait, len(portraits) > 1) for portrait in portraits]),
            AxesGroup([partial(_mean_weights, portrait, points) for portrait in portraits], points),
            *(_planes(portraits, ["W"], name) for name in names),
        ]
        if len(portraits) > 1:
            return _drawn([[group] for group in groups])
        figure = _drawn(_rows(groups, 2 if len(groups) == 4 else 3))
        return _titled(figure, portraits[0], "accuracy, and the weights W in the plane", portraits[0].sampling)


def figure_8(portrait: Portrait) -> Figure:
    """Draw the paper's Figure 8: one column per representation, coloured by every property that varies."""
    with styled():
        figure = _drawn([[_planes([portrait], list(portrait.planes), colour)] for colour in portrait.properties])
        title = " | ".join(NAMES.get(label, label) for label in portrait.planes)
        return _titled(figure, portrait, title, portrait.sampling)


# --- layout ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxesGroup:
    """Axes side by side that share their colours."""

    cells: Sequence[Callable[[Axes], str]]
    """One function per pair of axes: draws into them and returns the text above them."""
    colours: Colours | None = None
    """The colours that the legend below the axes, or the colour bar beside them, explains."""


def _planes(
    portraits: Sequence[Portrait], labels: Sequence[str], colour: str, headings: Sequence[str] = ()
) -> AxesGroup:
    """Return the axes for representations of zoos in two dimensions, coloured by the same property."""
    colours = Colours.of([portrait.zoo.metadata for portrait in portraits], colour)
    cells = [
        partial(_plane, portrait, label, colours, heading)
        for portrait, heading in zip(portraits, headings or [""] * len(portraits), strict=True)
        for label in labels
    ]
    return AxesGroup(cells, colours)


def _plane(portrait: Portrait, label: str, colours: Colours, heading: str, axes: Axes) -> str:
    note = panels.plane(axes, portrait.planes[label], portrait.zoo.metadata, colours, label)
    return "\n".join(filter(None, [heading, note]))


def _mean_weights(portrait: Portrait, colours: Colours, axes: Axes) -> str:
    return panels.mean_weights(axes, portrait.mean_weights, portrait.zoo.metadata, colours)


def _accuracies(portrait: Portrait, headed: bool, axes: Axes) -> str:
    left_out = panels.boxes(axes, portrait.shown, "test_accuracy")
    note = left_out and f"boxes: {left_out}"
    return _heading(portrait, note) if headed else note


def _rows(groups: Sequence[AxesGroup], columns: int) -> list[list[AxesGroup]]:
    return [list(groups[start : start + columns]) for start in range(0, len(groups), columns)]


def _drawn(rows: Sequence[Sequence[AxesGroup]]) -> Figure:
    """Draw rows of groups, each group with its legend below it."""
    columns = max(sum(len(group.cells) for group in row) for row in rows)
    width = min(WIDTH, WIDEST / columns)
    heights: list[float] = []
    starts = []
    for row in rows:
        starts.append(len(heights))
        heights.append(max(2.3, min(HEIGHT, 0.85 * width)))
        legends = [group.colours.height(width * len(group.cells)) for group in row if group.colours]
        heights += [max(legends)] if any(legends) else []
    figure = Figure(figsize=(width * columns, sum(heights) + TITLE), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for start, row in zip(starts, rows, strict=True):
        column = 0
        for group in row:
            end = column + len(group.cells)
            axes = [figure.add_subplot(grid[start, place]) for place in range(column, end)]
            for cell, where in zip(group.cells, axes, strict=True):
                where.set_title(cell(where))
            if group.colours and group.colours.looks:
                group.colours.legend(figure.add_subplot(grid[start + 1, column:end]), width * len(group.cells))
            elif group.colours:
                group.colours.bar(axes)
            column = end
    return figure


def _figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, side by side; ``width`` and ``height`` of one pair of axes are in inches."""
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _heading(portrait: Portrait, *notes: str) -> str:
    """Return the text above the column of a zoo, in lines that fit the narrowest column."""
    lines = [readable(portrait.name), *portrait.sampling.split("; "), *filter(None, notes)]
    return "\n".join(fill(line, 32) for line in lines)


def _titled(figure: Figure, portrait: Portrait, title: str, *notes: str) -> Figure:
    text = f"{readable(portrait.name)}: {title}\n" + "; ".join(note for note in notes if note)
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    return figure
