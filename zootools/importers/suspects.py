"""The usual mistakes of an importer, tried on a sample of checkpoints until one explains the recorded accuracies."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from zootools.architectures import Layer, Parameter, Schema
from zootools.architectures.networks import ACTIVATIONS
from zootools.images.datasets import Subset, per_channel
from zootools.importers.evaluation import Sample, Weights, score
from zootools.importers.importer import Facts
from zootools.spec.images import StoredImages

IMAGES = 2000
"""Images on which a suspect is tried first."""
NEAR = 0.02
"""Mean difference on these images up to which a suspect is tried on all of them."""
FITS = 0.005
"""Mean difference on all images at which a suspect explains the recorded accuracies."""
NORMALISATIONS = {
    "not normalised (mean 0, std 1)": (0.0, 1.0),
    "scaled to [-1, 1] (mean 0.5, std 0.5)": (0.5, 0.5),
    "normalised with mean 0.1307, std 0.3081": (0.1307, 0.3081),
    "normalised with mean 0.286, std 0.353": (0.286, 0.353),
    "pixels from 0 to 255": (0.0, 1 / 255),
}


@dataclass(frozen=True)
class Suspect:
    """A mistake: what the sample and the images would be without it."""

    what: str
    """Ends the sentence "the recorded accuracies are reached if ..."."""
    without: Callable[[Sample, Subset], tuple[Sample, Subset]]
    renumbers: bool = False
    """Whether the classes are renumbered (`Scored.matched`)."""


def explained(schema: Schema, sample: Sample, subset: Subset, facts: Facts) -> tuple[list[str], str]:
    """Return the mistakes that explain the recorded accuracies of a sample, best first, and a list of all tried."""
    few = Subset(subset.images[:IMAGES], subset.labels[:IMAGES])
    tried, found = [], []
    for suspect in suspects(schema, facts):
        tried.append(suspect.what)
        if _distance(schema, sample, few, suspect) <= NEAR:
            distance = _distance(schema, sample, subset, suspect)
            if distance <= FITS:
                found.append((distance, suspect.what))
    return [what for _, what in sorted(found)[:3]], "; ".join(tried)


def _distance(schema: Schema, sample: Sample, subset: Subset, suspect: Suspect) -> float:
    scored = score(schema, *suspect.without(sample, subset))
    accuracy = scored.matched if suspect.renumbers else scored.accuracy
    assert sample.recorded is not None
    return float(np.abs(accuracy - sample.recorded).mean())


def suspects(schema: Schema, facts: Facts) -> Iterator[Suspect]:
    """Yield the mistakes that can have been made with these layers and images."""
    for what, change in _orders(schema).items():
        yield Suspect(what, _reordered(change))
    if isinstance(facts.images, StoredImages) and facts.images.normalise is None:
        images = facts.images
        for what, (mean, std) in NORMALISATIONS.items():
            if (mean, std) != (images.mean, images.std):
                yield Suspect(f"the images are {what}", _renormalised(images, mean, std))
        yield Suspect("the images are inverted (white on black, or the reverse)", _inverted(images))
    yield Suspect("the rows and columns of the images are exchanged", _turned)
    for activation in ACTIVATIONS:
        yield Suspect(f"the activation is {activation}", _activated(activation))
    yield Suspect("the classes are numbered in another order", _unchanged, renumbers=True)


# --- weights ------------------------------------------------------------------------------------------------


def _orders(schema: Schema) -> dict[str, Callable[[Weights], Weights]]:
    """Return for every suspicious order of the weights the function that puts them right."""
    kinds = {str(layer.kind) for layer in schema.layers}
    orders: dict[str, Callable[[Weights], Weights]] = {}
    names = {"conv": "the convolution kernels", "linear": "the dense kernels"}
    chosen = [({kind}, names[kind]) for kind in sorted(kinds)] + [(kinds, "all kernels")] * (len(kinds) > 1)
    for which, name in chosen:
        orders[f"{name} are still in TensorFlow's order (height, width, in, out), and must be transposed"] = _each(
            schema, which, _from_tensorflow
        )
        orders[f"{name} were transposed although they were in PyTorch's order already"] = _each(
            schema, which, _to_tensorflow
        )
    if any(layer.kernel > 1 for layer in schema.layers):
        orders["height and width of the convolution kernels are exchanged"] = _each(schema, {"conv"}, _exchanged)
    if any(a.kind == "conv" and b.kind == "linear" for a, b in zip(schema.layers, schema.layers[1:], strict=False)):
        orders["the first dense layer takes its inputs in the order height, width, channels"] = _channels_last(schema)
    if any(layer.bias for layer in schema.layers):
        orders["the biases of each layer precede its weights"] = _biases_first(schema)
    return orders


def _reordered(change: Callable[[Weights], Weights]) -> Callable[[Sample, Subset], tuple[Sample, Subset]]:
    return lambda sample, subset: (replace(sample, weights=change(sample.weights)), subset)


def _each(schema: Schema, kinds: set[str], change: Callable[[Weights, Layer], Weights]) -> Callable[[Weights], Weights]:
    """Return a function that changes the kernels of the layers of some kinds."""
    parameters = {parameter.name: parameter for parameter in schema.parameters}

    def apply(weights: Weights) -> Weights:
        result = weights.copy()
        for layer in schema.layers:
            if layer.kind in kinds:
                kernel: Parameter = parameters[f"{layer.name}.weight"]
                result[:, kernel.offset : kernel.end] = change(weights[:, kernel.offset : kernel.end], layer)
        return result

    return apply


def _from_tensorflow(kernel: Weights, layer: Layer) -> Weights:
    stored = kernel.reshape(-1, layer.kernel, layer.kernel, layer.inputs, layer.outputs)
    return stored.transpose(0, 4, 3, 1, 2).reshape(len(kernel), -1)


def _to_tensorflow(kernel: Weights, layer: Layer) -> Weights:
    stored = kernel.reshape(-1, layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    return stored.transpose(0, 3, 4, 2, 1).reshape(len(kernel), -1)


def _exchanged(kernel: Weights, layer: Layer) -> Weights:
    stored = kernel.reshape(-1, layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    return stored.swapaxes(3, 4).reshape(len(kernel), -1)


def _channels_last(schema: Schema) -> Callable[[Weights], Weights]:
    position = next(i for i, layer in enumerate(schema.layers) if layer.kind == "linear")
    channels, height, width = schema.output_shapes[position - 1]

    def change(kernel: Weights, layer: Layer) -> Weights:
        if layer != schema.layers[position]:
            return kernel
        stored = kernel.reshape(-1, layer.outputs, height, width, channels)
        return stored.transpose(0, 1, 4, 2, 3).reshape(len(kernel), -1)

    return _each(schema, {"linear"}, change)


def _biases_first(schema: Schema) -> Callable[[Weights], Weights]:
    order, offset = [], 0
    for layer in schema.layers:
        size, biases = layer.outputs * layer.fan_in, layer.outputs if layer.bias else 0
        order += [*range(offset + biases, offset + biases + size), *range(offset, offset + biases)]
        offset += size + biases
    return lambda weights: weights[:, order]


# --- images and activations -----------------------------------------------------------------------------------


def _renormalised(images: StoredImages, mean: float, std: float) -> Callable[[Sample, Subset], tuple[Sample, Subset]]:
    def apply(sample: Sample, subset: Subset) -> tuple[Sample, Subset]:
        pixels = subset.images * per_channel(images.std) + per_channel(images.mean)
        return sample, Subset((pixels - mean) / std, subset.labels)

    return apply


def _inverted(images: StoredImages) -> Callable[[Sample, Subset], tuple[Sample, Subset]]:
    def apply(sample: Sample, subset: Subset) -> tuple[Sample, Subset]:
        mean, std = per_channel(images.mean), per_channel(images.std)
        return sample, Subset((1 - (subset.images * std + mean) - mean) / std, subset.labels)

    return apply


def _turned(sample: Sample, subset: Subset) -> tuple[Sample, Subset]:
    return sample, Subset(subset.images.transpose(2, 3), subset.labels)


def _unchanged(sample: Sample, subset: Subset) -> tuple[Sample, Subset]:
    return sample, subset


def _activated(activation: str) -> Callable[[Sample, Subset], tuple[Sample, Subset]]:
    return lambda sample, subset: (replace(sample, activations=(activation,) * len(sample)), subset)
