"""Tables 8 to 11: specifications and layer schemas in words, beside the words of the paper."""

from collections.abc import Iterator
from typing import Any

from representation.paper import printed
from representation.reproduction.items import zoo_label
from zootools.architectures import Schema
from zootools.building.planning import zoo_schema
from zootools.bundled import find_spec
from zootools.spec import Draw, Mlp, ZooSpec, load_spec

SECTIONS = {"table8": "zoos_as_described", "table9": "settings", "table10": "layers", "table11": "layers"}
NETWORKS = {"table10": "tetris_seed", "table11": "mnist_seed"}
"""The zoo whose network the table describes."""


def described(item: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield row, column, our text and the paper's text of each cell of a table of words."""
    paper = printed(SECTIONS[item])
    if item in NETWORKS:
        zoo = NETWORKS[item]
        spec = load_spec(find_spec(zoo))
        ours = _layers(zoo_schema(spec), str(spec.grid.axes["activation"][0]))
        rows, labels = paper[zoo], {name: name for name in paper[zoo]}
    else:
        rows = {name: values for name, values in paper.items() if name != "columns"}
        labels = {zoo: zoo_label(zoo) for zoo in rows}
        describe = _overview if item == "table8" else _settings
        ours = {zoo: describe(load_spec(find_spec(zoo))) for zoo in rows}
    for name, values in rows.items():
        for column, mine, theirs in zip(paper["columns"], ours[name], values, strict=True):
            yield labels[name], column, str(mine), str(theirs)


def _overview(spec: ZooSpec) -> list[Any]:
    """Return images, network, parameters, varied properties, checkpoints per model, and models."""
    network = "MLP" if isinstance(spec.architecture, Mlp) else "CNN"
    varied = [name for name, values in _axes(spec).items() if len(values) > 1]
    if spec.seeds.random is not None or spec.seeds.per_configuration > 1:
        varied.append("seed")
    size, kept = zoo_schema(spec).size, len(spec.training.kept_epochs)
    return [spec.images.name, network, size, ", ".join(sorted(varied)), kept, spec.model_count]


def _settings(spec: ZooSpec) -> list[str]:
    """Return the values of each axis, and the seeds."""
    axes = _axes(spec)
    values = [", ".join(_word(value) for value in sorted(axes[name])) for name in printed("settings")["columns"][2:]]
    seeds = spec.seeds
    if seeds.range is not None:
        text = f"{seeds.range[0]} to {seeds.range[1]}"
    elif seeds.random is not None:
        text = f"{seeds.random.per_configuration} of {seeds.random.low} to {seeds.random.high}"
    else:
        text = ", ".join(map(str, seeds.fixed or ()))
    return [", ".join(sorted(axes["init"])), text, *values]


def _axes(spec: ZooSpec) -> dict[str, tuple[Any, ...]]:
    """Return the values of each axis; for a drawn axis, its choices or the two ends of its interval."""

    def ends(draw: Draw) -> tuple[Any, ...]:
        return draw.choice or draw.uniform or draw.log_uniform or ()

    drawn = spec.sample.axes if spec.sample else {}
    return {**spec.grid.axes, **{name: ends(draw) for name, draw in drawn.items()}}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _layers(schema: Schema, activation: str) -> dict[str, list[Any]]:
    """Return inputs, outputs, kernel, pooling, activation, and parameters of each layer."""
    rows: dict[str, list[Any]] = {}
    for layer in schema.layers:
        kernel = layer.kernel if layer.kind == "conv" else "none"
        pooling = layer.max_pool if layer.max_pool > 1 else "none"
        size = layer.outputs * (layer.fan_in + layer.bias)
        after = activation if layer.activation else "none"
        rows[layer.name] = [layer.inputs, layer.outputs, kernel, pooling, after, size]
    return rows
