"""The paper's figures, each as one PNG file, from existing zoos and encoders."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from representation.dataset import ZooDataset
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import PaperStatistics, flatten
from representation.evaluation.probes import fit_ridge
from representation.reproduction.equivariance import draw_figure5, figure5_trajectories
from representation.reproduction.items import Item, zoo_label
from representation.reproduction.state import Picture
from representation.reproduction.work import Workspace
from zootools.architectures import Schema
from zootools.building.planning import zoo_schema
from zootools.bundled import find_spec
from zootools.errors import SpecError
from zootools.filesystem.files import write_durably
from zootools.images.datasets import load_images
from zootools.open import open_zoo
from zootools.plots import Portrait, figure_4, figure_7, figure_8
from zootools.plots.limits import beyond, frame
from zootools.plots.panels import at_border, ticks
from zootools.plots.style import PALETTE, styled, title_of
from zootools.plots.writing import image_bytes
from zootools.spec import load_spec

METHODS = ("W", "s(W)", "Ec+D")
"""The features that Figures 11 to 14 compare."""
TRANSFERS = {
    "figure11": "test_accuracy",
    "figure12": "epoch",
    "figure13": "generalization_gap",
    "figure14": "test_accuracy",
}


def draw(workspace: Workspace, items: Sequence[Item], there: Sequence[str]) -> dict[str, Picture]:
    """Draw the figures of some items from the zoos in ``there``; return the pictures by the names of the items."""
    return {item.name: _draw(workspace, item, there) for item in items}


def _draw(workspace: Workspace, item: Item, there: Sequence[str]) -> Picture:
    shown = [zoo for zoo in item.zoos if zoo in there]
    lacks = [zoo_label(zoo) for zoo in item.zoos if zoo not in there]
    note = f"Not in the picture, because the zoo is missing: {', '.join(lacks)}." if lacks else ""
    if item.zoos and item.zoos[0] not in there:
        return Picture(reason=f"{zoo_label(item.zoos[0])} is not there")
    for job in item.encoders:
        if workspace.found(job, 0) is None:
            return Picture(reason=f"the encoder {job.name} is not there")
    try:
        with styled():
            figure, more = _figure(workspace, item, shown)
    except SpecError as error:
        return Picture(reason=str(error))
    file = workspace.picture(item.name)
    write_durably(file, image_bytes(figure, "png"))
    return Picture(file, " ".join(text for text in (more, note) if text))


def _figure(workspace: Workspace, item: Item, shown: Sequence[str]) -> tuple[Figure, str]:
    """Return the picture, and a remark on it."""
    match item.name:
        case "figure4":
            return figure_4([_portrait(workspace.zoo(zoo), workspace.scale.points) for zoo in shown]), ""
        case "figure5":
            epochs, train = (10, 1000) if workspace.scale.name != "smoke" else (3, 100)
            said = f"The CNN of the MNIST zoos, trained on {train:,} of scikit-learn's digits."
            return draw_figure5(figure5_trajectories(epochs, train)), said
        case "figure6":
            return _tetris(), ""
        case "figure7":
            return figure_7([_portrait(workspace.zoo(zoo), workspace.scale.points) for zoo in shown]), ""
        case "figure8":
            encoder = workspace.encoder(item.encoders[0], 0)
            return figure_8(_portrait(workspace.zoo(shown[0]), workspace.scale.points, encoder)), ""
        case "figure9" | "figure10":
            zoo = "tetris_seed" if item.name == "figure9" else "mnist_seed"
            return _network(zoo_schema(load_spec(find_spec(zoo)))), ""
    said = "Predicted over true values, on the test split of each zoo; on the grey line both are equal."
    return _predictions(workspace, item, shown), said


# --- weight space -----------------------------------------------------------------------------------------------


@cache
def _portrait(folder: Path, points: int, encoder: Path | None = None) -> Portrait:
    """Return a zoo with its weights, and with an encoder also statistics and z, in the plane.

    Cached because Figures 4 and 7 use the same.
    """
    portrait = Portrait.of(open_zoo(folder, include_diverged=True), points)
    weights = portrait.zoo.weights()
    features: dict[str, Tensor] = {"W": weights}
    if encoder is not None:
        statistics = PaperStatistics()
        statistics.fit(weights, portrait.zoo.schema)
        features |= {"s(W)": statistics.embed(weights), "z": Encoder.from_pretrained(str(encoder)).embed(weights)}
    for label, values in features.items():
        flat, method = flatten(values)
        portrait = portrait.with_plane(label, flat.numpy(), method)
    return portrait


# --- images and networks ------------------------------------------------------------------------------------------


def _tetris() -> Figure:
    """Draw each class of the tetris images: the shape, a training image, and a test image."""
    images = load_spec(find_spec("tetris_seed")).images
    clean = load_images(images.model_copy(update={"noise_train": 0.0}))
    noisy = load_images(images)
    rows = {"shape": clean.train, "for training": noisy.train, "for testing": noisy.test}
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    grid = figure.subplots(len(rows), 4)
    for line, (name, subset) in zip(grid, rows.items(), strict=True):
        for label, axes in enumerate(line):
            first = int((subset.labels == label).nonzero()[0])
            shown = axes.imshow(subset.images[first, 0], cmap="gray_r", vmin=-1, vmax=2)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name == "shape":
                axes.set_title("IOTL"[label], loc="center")
        line[0].set_ylabel(name)
    figure.colorbar(shown, ax=grid, label="grey value", shrink=0.6)
    return figure


def _network(schema: Schema) -> Figure:
    """Draw a network from left to right: units as dots, channels as squares, layers as arrows with text."""
    flat_input = schema.layers[0].kind == "linear"
    shapes = [(schema.layers[0].inputs, 1, 1) if flat_input else schema.input_shape, *schema.output_shapes]
    figure = Figure(figsize=(1.9 * len(shapes), 3.8), layout="constrained")
    axes = figure.subplots()
    for place, (channels, height, _) in enumerate(shapes):
        x, text = 4.0 * place, ("input\n" if not place else "")
        if height == 1:
            text += f"{channels} units"
            ys = [_height(unit, channels) for unit in range(channels)]
            axes.plot([x] * channels, ys, "o", color=PALETTE[0], markersize=5, zorder=3)
            before = shapes[place - 1][0] if place and shapes[place - 1][1] == 1 else 0
            for unit in range(before):
                axes.plot(
                    [[x - 4.0] * channels, [x] * channels], [[_height(unit, before)] * channels, ys], "0.8", lw=0.5
                )
        else:
            text += f"{channels} x {height} x {height}"
            side = 0.5 + 1.5 * height / schema.input_shape[1]
            for channel in range(channels):
                shift = 0.13 * (channel - (channels - 1) / 2)
                corner = (x + shift - side / 2, -shift - side / 2)
                axes.add_patch(Rectangle(corner, side, side, facecolor="#CFE3F0", edgecolor=PALETTE[0]))
        axes.text(x, -2.7, text, ha="center", va="top")
    for place, layer in enumerate(schema.layers):
        what = f"{layer.name}: linear" if layer.kind == "linear" else f"{layer.name}: {layer.kernel} x {layer.kernel}"
        steps = [what, f"max pool {layer.max_pool}" * (layer.max_pool > 1), "activation" * layer.activation]
        size = layer.outputs * (layer.fan_in + layer.bias)
        text = "\n".join([*filter(None, steps), f"{size:,} parameters"])
        axes.text(4.0 * place + 2.0, 2.7, text, ha="center", va="bottom", fontsize=8)
        arrow = {"arrowstyle": "->", "color": "0.4"}
        axes.annotate("", (4.0 * place + 2.8, 2.5), (4.0 * place + 1.2, 2.5), arrowprops=arrow)
    axes.set(xlim=(-1.8, 4.0 * len(shapes) - 2.2), ylim=(-3.9, 4.6), aspect="equal")
    axes.axis("off")
    return figure


def _height(unit: int, units: int) -> float:
    """Return the vertical position of one of the ``units`` in a column."""
    return (unit - (units - 1) / 2) * min(0.45, 4.6 / units)


# --- predictions ----------------------------------------------------------------------------------------------------


def _predictions(workspace: Workspace, item: Item, shown: Sequence[str]) -> Figure:
    """Draw predictions of a probe fitted to the first zoo for every zoo: one row per method, or one row for one zoo."""
    (job,), target = item.encoders, TRANSFERS[item.name]
    recipe = workspace.scale.recipe_of(job)
    zoos = [ZooDataset.of(open_zoo(workspace.zoo(name)), recipe) for name in shown]
    home = zoos[0]
    statistics, encoder = PaperStatistics(), Encoder.from_pretrained(str(workspace.encoder(job, 0)))
    statistics.fit(home.splits["train"].weights, home.schema)
    embeddings = {"W": lambda weights: weights, "s(W)": statistics.embed, job.method: encoder.embed}
    rows, columns = (len(METHODS), len(zoos)) if len(zoos) > 1 else (1, len(METHODS))
    figure = Figure(figsize=(3.0 * columns, 2.8 * rows), layout="constrained")
    grid = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for method in METHODS:
        embed = embeddings[method]
        samples = [(embed(home.splits[s].weights), _truth(home, s, target)) for s in ("train", "validation")]
        probe = fit_ridge(*samples)
        for zoo in zoos:
            axes = next(grid)
            predicted = probe(embed(zoo.splits["test"].weights))[:, 0]
            note = _over_truth(axes, _truth(zoo, "test", target)[:, 0], predicted)
            axes.set_title("\n".join(filter(None, [f"{zoo_label(zoo.name)}, from {method}", note])))
            axes.set(xlabel=f"true {title_of(target)}", ylabel=f"predicted {title_of(target)}")
    return figure


def _truth(zoo: ZooDataset, split: str, target: str) -> Tensor:
    """Return a property of a split, float64 ``[rows, 1]``."""
    return zoo.splits[split].targets[target].values[:, None]


def _over_truth(axes: Axes, truth: Tensor, predicted: Tensor) -> str:
    """Draw predictions over true values ``[rows]``; return a remark on points outside the frame."""
    known = torch.isfinite(truth) & torch.isfinite(predicted)
    x, y = truth[known].double().numpy(), predicted[known].double().numpy()
    low, high = frame(np.concatenate([x, y]), x)
    axes.plot([low, high], [low, high], color="0.6", linewidth=1)
    axes.plot(x.clip(low, high), y.clip(low, high), ".", color=PALETTE[0], markersize=3, alpha=0.5, clip_on=False)
    axes.set(xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        ticks(axis, x)
    return at_border(beyond(x, (low, high)) | beyond(y, (low, high)))
