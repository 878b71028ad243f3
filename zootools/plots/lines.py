"""The picture of the lines between two networks (`representation.geometry`)."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from zootools.plots.style import PALETTE, readable, styled


def draw_lines(first: str, second: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw accuracy and loss at equally spaced points from one network to another; ``lines`` has both by name."""
    with styled():
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, title in enumerate(("test accuracy", "test loss")):
            for (name, values), colour in zip(lines.items(), PALETTE, strict=False):
                points = [place / (len(values[number]) - 1) for place in range(len(values[number]))]
                panels[number].plot(points, values[number], marker="o", markersize=3, color=colour, label=name)
            panels[number].set_title(title)
            panels[number].set_xlabel(f"from {readable(first)}\nto {readable(second)}")
        panels[0].set_ylim(0, 1)
        panels[1].legend()
        return figure
