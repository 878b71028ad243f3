"""The pictures: matplotlib Figures, made without pyplot and its global state."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zootools.plots import panels
from zootools.plots.portrait import Portrait, numbers
from zootools.plots.style import DIVERGED, NAMES, PALETTE, readable, styled, title_of

WIDTH, HEIGHT = 3.6, 2.9
"""Inches of one pair of axes with its legend."""


def accuracy(portrait: Portrait) -> Figure:
    """Draw box plots of the test accuracy over epochs."""
    with styled():
        figure, grid = _figure([3.4], 1, 6.4)
        left_out = panels.boxes(grid[0][0], portrait.shown, "test_accuracy")
        return _titled(figure, portrait, "test accuracy over epochs", portrait.everything, left_out)


def mean_weight(portrait: Portrait) -> Figure:
    """Draw the test accuracy over the mean weight."""
    with styled():
        figure, grid = _figure([3.6], 1, 5.0)
        panels.mean_weights(grid[0][0], portrait.mean_weights, portrait.zoo.metadata)
        return _titled(figure, portrait, "test accuracy over mean weight", portrait.sampling)


def gap(portrait: Portrait) -> Figure:
    """Draw the generalisation gap over epochs, and over the test accuracy."""
    with styled():
        figure, grid = _figure([3.3], 2, 4.0)
        left_out = panels.boxes(grid[0][0], portrait.shown, "generalization_gap")
        table = portrait.zoo.metadata
        x, y = numbers(table["test_accuracy"]), numbers(table["generalization_gap"])
        panels.scatter_numbers(grid[0][1], x, y, numbers(table["epoch"]), "epoch")
        grid[0][1].set_xlabel(title_of("test_accuracy"))
        for axes in grid[0]:
            axes.set_ylabel("generalisation gap\n(training minus test accuracy)")
        return _titled(
            figure, portrait, "generalisation gap", left_out and f"left: {left_out}", f"right: {portrait.sampling}"
        )


def losses(portrait: Portrait) -> Figure:
    """Draw the losses of every model over its epochs, with those that diverged marked."""
    with styled():
        columns = [name for name in LOSSES if not portrait.lacks(name)]
        figure, grid = _figure([3.3], len(columns), 4.0)
        said: dict[str, None] = {}
        for axes, column in zip(grid[0], columns, strict=True):
            said |= dict.fromkeys(panels.curves(axes, portrait.metadata, column).split("; "))
            axes.set_ylabel(f"{title_of(column)}\n(mean cross-entropy, nats)")
        handles = []
        if not portrait.all_diverged:
            handles.append(Line2D([], [], color=PALETTE[0], linewidth=1, label="a model"))
            handles.append(Line2D([], [], color="black", linewidth=1.5, label="median"))
        if portrait.diverged:
            label = "a model that diverged, x its last checkpoint"
            handles.append(Line2D([], [], color=DIVERGED, linewidth=1, marker="x", label=label))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return _titled(figure, portrait, "losses over epochs", *said)


LOSSES = ("train_loss", "validation_loss", "test_loss")


def embedding(portrait: Portrait, label: str) -> Figure:
    """Draw one representation (a label of `Portrait.planes`) in the plane, once for every property that varies."""
    with styled():
        properties = portrait.properties
        columns = 2 if len(properties) > 1 else 1
        rows = [properties[start : start + columns] for start in range(0, len(properties), columns)]
        figure, grid = _figure([max(_height([portrait], colour) for colour in row) for row in rows], columns)
        for axes, colour in zip((axes for row in grid for axes in row), properties, strict=False):
            panels.plane(axes, portrait.planes[label], portrait.zoo.metadata, colour, label)
        for axes in [axes for row in grid for axes in row][len(properties) :]:
            axes.remove()
        method = portrait.planes[label].method
        return _titled(figure, portrait, f"{method} of {NAMES.get(label, label)}", portrait.sampling)


def figure_4(portraits: Sequence[Portrait], colour: str = "init") -> Figure:
    """Draw the weight space of some zoos side by side, coloured by initialisation, as the paper's Figure 4."""
    with styled():
        figure, grid = _figure([_height(portraits, colour)], len(portraits))
        for axes, portrait in zip(grid[0], portraits, strict=True):
            panels.plane(axes, portrait.planes["W"], portrait.zoo.metadata, colour, "W")
            axes.set_title(_heading(portrait))
        return figure


def figure_7(portraits: Sequence[Portrait]) -> Figure:
    """Draw the paper's Figure 7, a column for each zoo: accuracy over epochs and over mean weight, and the weight space
    coloured by activation, initialisation and epoch, where they vary.
    """
    with styled():
        colours = [name for name in ("activation", "init", "epoch") if any(name in p.properties for p in portraits)]
        heights = [HEIGHT, HEIGHT, *(_height(portraits, colour) for colour in colours)]
        figure, grid = _figure(heights, len(portraits))
        for column, portrait in enumerate(portraits):
            table = portrait.zoo.metadata
            left_out = panels.boxes(grid[0][column], portrait.shown, "test_accuracy")
            grid[0][column].set_title(_heading(portrait, left_out and f"boxes: {left_out}"))
            panels.mean_weights(grid[1][column], portrait.mean_weights, table)
            for row, colour in enumerate(colours, 2):
                panels.plane(grid[row][column], portrait.planes["W"], table, colour, "W")
        return figure


def figure_8(portrait: Portrait) -> Figure:
    """Draw the paper's Figure 8: every representation (a column each) coloured by every property that varies."""
    with styled():
        heights = [_height([portrait], colour) for colour in portrait.properties]
        figure, grid = _figure(heights, len(portrait.planes))
        for row, colour in enumerate(portrait.properties):
            for column, (label, where) in enumerate(portrait.planes.items()):
                panels.plane(grid[row][column], where, portrait.zoo.metadata, colour, label)
        title = " | ".join(NAMES.get(label, label) for label in portrait.planes)
        return _titled(figure, portrait, title, portrait.sampling)


def _figure(heights: Sequence[float], columns: int, width: float = WIDTH) -> tuple[Figure, list[list[Any]]]:
    """Return a figure and its axes, row by row; ``heights`` and ``width`` are those of one pair of axes, in inches."""
    figure = Figure(figsize=(width * columns, sum(heights)), layout="constrained")
    return figure, figure.subplots(len(heights), columns, squeeze=False).tolist()


def _height(portraits: Sequence[Portrait], colour: str) -> float:
    """Return the height of a row of axes coloured by a property, with room for the largest legend."""
    return HEIGHT + max(panels.legend_height(portrait.zoo.metadata, colour) for portrait in portraits)


def _heading(portrait: Portrait, *notes: str) -> str:
    """What stands above the column of a zoo, in lines that are not wider than it."""
    return "\n".join([readable(portrait.name), *portrait.sampling.split("; "), *filter(None, notes)])


def _titled(figure: Figure, portrait: Portrait, title: str, *notes: str) -> Figure:
    text = f"{readable(portrait.name)}: {title}\n" + "; ".join(note for note in notes if note)
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    return figure
