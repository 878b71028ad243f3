"""The layer schema: everything that is derived from it agrees with plain PyTorch."""

import copy
import json
import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ARCHITECTURES
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from zootools.architectures import MAX_PARAMETERS, Layer, Schema, build_schema
from zootools.architectures.networks import ACTIVATIONS, Network, parameter_views, stacked_forward
from zootools.architectures.own import CnnLayers
from zootools.architectures.registry import CNNS
from zootools.errors import DamagedZooError, SpecError
from zootools.spec import Activation, Architecture, Cnn, CnnName, Mlp, Optimizer
from zootools.training.group import OPTIMIZER_STATE

SHAPES = {
    "mlp": (1, 4, 4),
    "mlp_deep": (1, 4, 4),
    "cnn_small": (1, 28, 28),
    "cnn_unterthiner": (1, 32, 32),
    "cnn_large": (3, 32, 32),
}


@pytest.fixture(params=SHAPES)
def schema(request: pytest.FixtureRequest) -> Schema:
    return build_schema(ARCHITECTURES[request.param], SHAPES[request.param], 4)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("mlp", (1, 4, 4), 4, 100),
        ("cnn_small", (1, 28, 28), 10, 2464),
        ("cnn_small", (3, 28, 28), 10, 2864),
        ("cnn_unterthiner", (1, 28, 28), 10, 4970),
        ("cnn_unterthiner", (1, 32, 32), 10, 4970),
        ("cnn_large", (3, 32, 32), 10, 10_853),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    name: str, shape: tuple[int, int, int], classes: int, parameters: int
) -> None:
    schema = build_schema(ARCHITECTURES[name], shape, classes)
    assert schema.size == parameters
    assert sum(p.numel() for p in Network(schema, "tanh").parameters()) == parameters


def test_a_new_convolutional_network_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name in the specification is the only other place, and no test can add it there."""
    row = CnnLayers(lambda channels: [Layer("conv1", "conv", channels, 2, kernel=3)], hidden=(5, 4))
    monkeypatch.setitem(CNNS, "toy", row)
    toy = Cnn.model_construct(name="toy")  # type: ignore[arg-type]
    schema = build_schema(toy, (1, 5, 5), 3)
    assert [(layer.name, layer.inputs, layer.outputs) for layer in schema.layers] == [
        ("conv1", 1, 2), ("fc1", 18, 5), ("fc2", 5, 4), ("fc3", 4, 3)
    ]  # fmt: skip
    assert [layer.activation for layer in schema.layers] == [True, True, True, False]
    assert [layer.dropout for layer in schema.layers] == [False, True, True, False]
    assert Network(schema, "tanh")(torch.zeros(2, 1, 5, 5)).shape == (2, 3)


def test_every_name_of_the_specification_is_in_the_tables() -> None:
    assert set(get_args(CnnName)) == set(CNNS)
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    assert set(get_args(Optimizer)) == set(OPTIMIZER_STATE)


def test_parameters_of_the_module_are_named_shaped_and_ordered_as_in_the_schema(schema: Schema) -> None:
    expected = [(parameter.name, parameter.shape) for parameter in schema.parameters]
    for dropout in (0.0, 0.5):
        network = Network(schema, "relu", dropout)
        assert [(name, tuple(value.shape)) for name, value in network.named_parameters()] == expected
        assert list(network.state_dict()) == [name for name, _ in expected]


def test_parameters_cover_the_flat_vector_without_gaps(schema: Schema) -> None:
    ends = [parameter.end for parameter in schema.parameters]
    assert [parameter.offset for parameter in schema.parameters] == [0, *ends[:-1]]
    assert ends[-1] == schema.size


_architectures = st.one_of(
    st.builds(
        lambda hidden, bias: Mlp(name="mlp", hidden=tuple(hidden), bias=bias),
        st.lists(st.integers(1, 9), min_size=1, max_size=4),
        st.booleans(),
    ),
    st.sampled_from([Cnn(name="cnn_small"), Cnn(name="cnn_unterthiner"), Cnn(name="cnn_large")]),
)


@given(_architectures, st.integers(1, 4), st.integers(22, 36), st.integers(2, 12), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_cutting_a_flat_vector_into_a_module_and_joining_it_again_is_the_identity(
    architecture: Architecture, channels: int, side: int, classes: int, random: Any
) -> None:
    schema = build_schema(architecture, (channels, side, side), classes)
    flat = torch.from_numpy(np.random.default_rng(random.randrange(2**32)).standard_normal(schema.size))
    network = Network(schema, "tanh").double()
    parts = {p.name: flat[p.offset : p.end].view(p.shape) for p in schema.parameters}
    network.load_state_dict(parts)
    assert torch.equal(parameters_to_vector(network.parameters()), flat)
    images = torch.zeros(2, channels, side, side, dtype=torch.float64)
    assert network(images).shape == (2, classes)


def test_output_shapes_are_those_of_the_module(schema: Schema) -> None:
    network, found = Network(schema, "tanh"), []
    for layer in schema.layers:
        network.get_submodule(layer.name).register_forward_hook(lambda *args: found.append(tuple(args[2].shape[1:])))
    network(torch.zeros(1, *schema.input_shape))
    for shape, layer, (channels, height, width) in zip(found, schema.layers, schema.output_shapes, strict=True):
        assert shape[0] == channels
        if layer.kind == "conv" and not layer.global_average_pool:
            assert [side // layer.max_pool for side in shape[1:]] == [height, width]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_stacked_forward_pass_is_that_of_the_modules(schema: Schema, activation: str) -> None:
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.standard_normal((3, schema.size)) * 0.3)
    images = torch.from_numpy(rng.standard_normal((5, 3, *schema.input_shape)))
    weights = parameter_views(schema, flat)
    own = stacked_forward(schema, weights, images, activation)
    shared = stacked_forward(schema, weights, images[:, 0], activation)
    for model in range(3):
        network = _network(schema, activation, flat[model])
        torch.testing.assert_close(own[model], network(images[:, model]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(shared[model], network(images[:, 0]), rtol=1e-10, atol=1e-10)


def test_gradients_of_shared_images_are_those_of_the_modules(schema: Schema) -> None:
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.standard_normal((3, schema.size)) * 0.3)
    images = torch.from_numpy(rng.standard_normal((5, *schema.input_shape))).requires_grad_()
    logits = stacked_forward(schema, parameter_views(schema, flat), images, "tanh")
    alone = torch.stack([_network(schema, "tanh", each)(images) for each in flat])
    torch.testing.assert_close(logits, alone, rtol=1e-10, atol=1e-10)
    weights = torch.from_numpy(rng.standard_normal(logits.shape))
    found, expected = (torch.autograd.grad((each * weights).sum(), images)[0] for each in (logits, alone))
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def _network(schema: Schema, activation: str, flat: torch.Tensor) -> Network:
    network = Network(schema, activation).double().eval().requires_grad_(False)
    vector_to_parameters(flat, network.parameters())
    return network


# --- permutations and tokens --------------------------------------------------------------------------


def _random_permutations(schema: Schema, rng: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    return {layer.name: rng.permutation(layer.outputs) for layer in schema.layers[:-1]}


@pytest.mark.parametrize("seed", range(5))
def test_permuting_all_hidden_layers_leaves_the_function_unchanged(schema: Schema, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flat = rng.standard_normal(schema.size)
    index = schema.permutation_index(_random_permutations(schema, rng))
    assert sorted(index.tolist()) == list(range(schema.size))
    assert (index != np.arange(schema.size)).any()
    images = torch.from_numpy(rng.standard_normal((8, *schema.input_shape)))
    before, after = (_network(schema, "tanh", torch.from_numpy(w))(images) for w in (flat, flat[index]))
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_a_permutation_moves_the_neurons_it_names(schema: Schema) -> None:
    first = schema.layers[0]
    order = np.roll(np.arange(first.outputs), 1)
    index = schema.permutation_index({first.name: order})
    tokens = schema.neuron_tokens()
    assert np.array_equal(index[tokens[first.name]], tokens[first.name][order])


def test_no_permutation_is_the_identity(schema: Schema) -> None:
    assert np.array_equal(schema.permutation_index({}), np.arange(schema.size))


def test_wrong_permutations_are_refused(schema: Schema) -> None:
    first, last = schema.layers[0], schema.layers[-1]
    for wrong in ({last.name: np.arange(last.outputs)}, {"nothing": [0]}):
        with pytest.raises(ValueError, match="only the hidden layers"):
            schema.permutation_index(wrong)
    for order in (np.zeros(first.outputs, int), np.arange(first.outputs - 1), np.arange(first.outputs) + 1):
        with pytest.raises(ValueError, match="expected a permutation"):
            schema.permutation_index({first.name: order})


def test_neuron_tokens_cover_every_weight_exactly_once(schema: Schema) -> None:
    tokens = schema.neuron_tokens()
    assert sorted(np.concatenate([rows.reshape(-1) for rows in tokens.values()]).tolist()) == list(range(schema.size))


def test_a_neuron_token_is_its_incoming_weights_and_its_own_bias(schema: Schema) -> None:
    flat = torch.arange(schema.size, dtype=torch.float64)
    network, tokens = _network(schema, "tanh", flat), schema.neuron_tokens()
    for layer in schema.layers:
        module, rows = network.get_submodule(layer.name), flat[torch.from_numpy(tokens[layer.name])]
        assert rows.shape == (layer.outputs, layer.fan_in + layer.bias)
        assert torch.equal(rows[:, : layer.fan_in], module.weight.flatten(1))
        if layer.bias:
            assert torch.equal(rows[:, -1], module.bias)


# --- what does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn_small", "cnn_unterthiner", "cnn_large"])
def test_images_that_are_too_small_are_refused_with_the_layer_and_a_way_out(name: str) -> None:
    with pytest.raises(SpecError, match=rf"{name}: conv\d .* leaves nothing .* use larger images \(images.size\)"):
        build_schema(ARCHITECTURES[name], (1, 8, 8), 10)
    with pytest.raises(SpecError, match="leaves nothing"):
        build_schema(ARCHITECTURES[name], (1, 28, 1), 10)


def test_a_network_that_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(SpecError, match=f"at most {MAX_PARAMETERS:,} are allowed"):
        build_schema(Mlp(name="mlp", hidden=(4096,) * 4), (3, 96, 96), 10)


@pytest.mark.parametrize(
    "layers",
    [
        [Layer("a", "linear", 15, 4)],
        [Layer("a", "linear", 16, 5), Layer("b", "linear", 6, 4)],
        [Layer("a", "conv", 2, 5, kernel=3)],
        [Layer("a", "conv", 1, 5, kernel=5)],
        [Layer("a", "conv", 1, 5, kernel=3, max_pool=3)],
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused(layers: list[Layer]) -> None:
    with pytest.raises(SpecError):
        Schema("own", (1, 4, 4), tuple(layers))


@pytest.mark.parametrize("key", ["inputs", "outputs", "kernel", "stride", "max_pool"])
@pytest.mark.parametrize("value", [0, -1, MAX_PARAMETERS + 1, 10**30, True, 1.5])
@pytest.mark.parametrize("source", ["built", "read"])
def test_a_layer_that_cannot_be_is_refused_with_its_name_and_key(key: str, value: Any, source: str) -> None:
    """In an architecture of one's own as in the schema of a stranger; never a division by zero."""
    good = build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10)
    entries = good.to_json()["layers"]
    entries[1][key] = value

    def make() -> Schema:
        if source == "read":
            return Schema.from_json({**good.to_json(), "layers": entries})
        return Schema("own", (1, 28, 28), tuple(Layer(**entry) for entry in entries))

    with pytest.raises((SpecError, DamagedZooError), match=rf"(conv2: |layers\.1\.){key}: found {value!r}"):
        make()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "found 0 layers"),
        ([Layer("a", "linear", 16, 4, global_average_pool=True)], "a: global_average_pool: found True"),
        ([Layer("a", "linear", 16, 4), Layer("b", "conv", 4, 4)], "b: a convolution cannot follow a linear layer"),
        ([Layer("a", "linear", 16, 4), Layer("a", "linear", 4, 4)], "must differ"),
        ([Layer("a", "linear", 16, 5_000_000), Layer("b", "linear", 5_000_000, 4)], "parameters; at most"),
        ([Layer("a", "conv", 1, 5, kernel=5)], "a .kernel 5, .* leaves nothing"),
    ],
)
def test_layers_that_no_image_can_go_through_are_refused(layers: list[Layer], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Schema("own", (1, 4, 4), tuple(layers))


@pytest.mark.parametrize("classes", [0, -1])
def test_a_network_of_no_classes_is_refused(classes: int) -> None:
    with pytest.raises(SpecError, match=f"fc2: outputs: found {classes}"):
        build_schema(Mlp(name="mlp", hidden=(5,)), (1, 4, 4), classes)


def test_a_name_that_a_module_cannot_have_or_run_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="cannot have a layer named 'forward'"):
        Network(Schema("own", (1, 4, 4), (Layer("forward", "linear", 16, 4),)), "tanh")
    with pytest.raises(SpecError, match="activation: found 'tahn'; did you mean 'tanh'"):
        Network(Schema("own", (1, 4, 4), (Layer("a", "linear", 16, 4),)), "tahn")


# --- JSON ---------------------------------------------------------------------------------------------


def test_a_schema_survives_json(schema: Schema) -> None:
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize("value", [None, [], {}, "x", 3, {"layers": 3}, {"layers": [3]}, {"layers": [{}]}])
def test_json_that_is_not_a_schema_is_refused(value: Any) -> None:
    with pytest.raises(DamagedZooError, match="layer schema"):
        Schema.from_json(value)


SHAPES_NOT_WRITTEN: list[Any] = [
    None,
    [1, 28],
    [1, 28, 28, 1],
    ["1", 28, 28],
    [1, 28.0, 28],
    [1, -28, 28],
    [1, math.inf, 28],
    [True, 28, 28],
]


def _mangled() -> list[tuple[list[str | int], Any]]:
    wrong: list[tuple[list[str | int], Any]] = [(["input_shape"], shape) for shape in SHAPES_NOT_WRITTEN]
    wrong += [(["name"], 3), (["layers"], []), (["layers"], {"0": 1})]
    for key in ("inputs", "outputs", "kernel", "stride", "max_pool"):
        wrong += [(["layers", 1, key], value) for value in (0, -1, 1.0, "1", None, True, 10**9)]
    for key in ("name", "kind", "bias", "activation", "dropout", "global_average_pool"):
        wrong.append((["layers", 1, key], 1))
    wrong += [(["layers", 1, "name"], name) for name in ("conv1", "a.b", "", "../x")]
    wrong += [(["layers", 1, "kind"], "pool"), (["layers", 1, "surplus"], 1)]
    wrong += [(["layers", 3, key], 2) for key in ("kernel", "stride", "max_pool")]
    return wrong


@pytest.mark.parametrize(("place", "value"), _mangled())
def test_mangled_json_is_refused(place: list[str | int], value: Any) -> None:
    mangled: Any = copy.deepcopy(build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10).to_json())
    target = mangled
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(DamagedZooError, match="layer schema"):
        Schema.from_json(mangled)


def test_a_layer_that_lacks_a_field_is_refused() -> None:
    mangled = build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10).to_json()
    for key in list(mangled["layers"][0]):
        broken = copy.deepcopy(mangled)
        del broken["layers"][0][key]
        with pytest.raises(DamagedZooError, match="layer schema"):
            Schema.from_json(broken)
