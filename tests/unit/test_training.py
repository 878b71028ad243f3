"""The trainers of both backends against the reference, and the independence of a model from everything around it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from samples import ARCHITECTURES, BACKENDS, make_model, make_trainer, make_trainers
from sklearn.metrics import f1_score

from zootools.architectures import Schema, build_schema
from zootools.errors import SpecError
from zootools.images.datasets import ImageData, Subset
from zootools.spec import Activation, Init, Mlp
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import Trainer
from zootools.training.initialise import initial_weights
from zootools.training.reference import train_reference
from zootools.training.stacked import StackedTrainer

INITS = get_args(Init)
BATCH = 4
EPOCHS = 2  # 42 images in batches of 4: 22 steps


@pytest.fixture(params=[*BACKENDS, "gpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend, that for GPUs with its kernel compiled for the processor."""
    return str(request.param)


def mixed(seed: int, **changes: Any) -> ModelConfig:
    """One of many different models that can be in one stack."""
    values = {"lr": 1e-3 * (1 + seed % 3), "weight_decay": 0.01 * (seed % 2), "l2": 1e-3, "dropout": 0.1 * (seed % 4)}
    return make_model(seed, **(values | {"train_fraction": (1.0, 0.5, 0.73)[seed % 3]} | changes))


def trained(
    backend: str, schema: Schema, images: ImageData, models: list[ModelConfig], epochs: int = EPOCHS
) -> Trainer:
    trainer = make_trainer(backend, schema, models, images, BATCH)
    for epoch in range(1, epochs + 1):
        trainer.train_epoch(epoch)
    return trainer


def trained_weights(backend: str, schema: Schema, images: ImageData, models: list[ModelConfig]) -> torch.Tensor:
    """The weights of any number of models after training, by as many trainers as they take on this processor."""
    trainers = make_trainers(backend, schema, models, images, BATCH)
    for trainer in trainers:
        for epoch in range(1, EPOCHS + 1):
            trainer.train_epoch(epoch)
    return torch.cat([trainer.weights for trainer in trainers])


def distance_from_reference(backend: str, schema: Schema, images: ImageData, models: list[ModelConfig]) -> float:
    """Median over the models of the relative L2 difference of the flat weights after training."""
    return median_distance(trained_weights(backend, schema, images, models), schema, images, models)


def median_distance(weights: torch.Tensor, schema: Schema, images: ImageData, models: list[ModelConfig]) -> float:
    """Median over the models of the relative L2 difference of flat weights from those of the reference on the CPU."""
    errors = []
    for row, model in enumerate(models):
        *_, network = train_reference(schema, model, images, BATCH, EPOCHS)
        reference = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        errors.append(((weights[row] - reference).norm() / reference.norm()).item())
    return float(np.median(errors))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_training_equals_the_reference(backend: str, problem: tuple[Schema, ImageData], optimizer: str) -> None:
    # RMSprop's first step moves every weight by ten learning rates in the direction of its gradient, even where that
    # is nothing but rounding; so it gets a tenth of the others' rate.
    changes = {"lr": 2e-4} if optimizer == "rmsprop" else {}
    models = [mixed(seed, optimizer=optimizer, init="kaiming_uniform", **changes) for seed in range(1, 6)]
    assert distance_from_reference(backend, *problem, models) <= 1e-5


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_equals_the_reference(backend: str, digits: ImageData, activation: str) -> None:
    schema = build_schema(ARCHITECTURES["cnn_small"], digits.input_shape, digits.classes)
    models = [mixed(seed, activation=activation, init="kaiming_normal") for seed in range(1, 4)]
    assert distance_from_reference(backend, schema, digits, models) <= 1e-5


@pytest.mark.parametrize("init", INITS)
def test_every_init_equals_the_reference(backend: str, digits: ImageData, init: str) -> None:
    schema = build_schema(ARCHITECTURES["cnn_unterthiner"], digits.input_shape, digits.classes)
    models = [mixed(seed, init=init, init_std=0.1, bias_init=0.0) for seed in range(1, 4)]
    assert distance_from_reference(backend, schema, digits, models) <= 1e-5


def test_bits_do_not_depend_on_neighbours_place_or_number(backend: str, problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 17)]
    together = trained_weights(backend, schema, images, models)
    assert torch.equal(trained_weights(backend, schema, images, models[::-1]).flip(0), together)
    assert torch.equal(trained_weights(backend, schema, images, models[3:4])[0], together[3])
    assert torch.equal(trained_weights(backend, schema, images, models[5:9]), together[5:9])


def test_scores_equal_those_of_plain_pytorch(backend: str, problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 4)]
    scores = trained(backend, schema, images, models).evaluate()
    for row, model in enumerate(models):
        *_, network = train_reference(schema, model, images, BATCH, EPOCHS)
        count = {"train": max(1, int(42 * model.hyperparameters.train_fraction)), "test": 20}
        for name, subset in (("train", images.train), ("test", images.test)):
            with torch.no_grad():
                logits = network.eval()(subset.images[: count[name]])
            labels = subset.labels[: count[name]]
            loss = torch.nn.functional.cross_entropy(logits.double(), labels)
            assert scores[name].loss[row] == pytest.approx(loss.item(), rel=1e-4)
            assert scores[name].accuracy[row] == (logits.argmax(1) == labels).double().mean().item()
            expected = f1_score(labels, logits.argmax(1), labels=range(schema.classes), average=None, zero_division=0)
            assert scores[name].f1[row] == pytest.approx(expected)


def test_a_diverged_neighbour_changes_nothing(backend: str, problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    calm = [make_model(seed, init="kaiming_uniform", optimizer="sgd") for seed in (1, 2)]
    wild = make_model(3, init="kaiming_uniform", optimizer="sgd", lr=1.0, weight_decay=100.0)
    disturbed = trained(backend, schema, images, [calm[0], wild, calm[1]], epochs=4).weights
    assert not torch.isfinite(disturbed[1]).all()
    assert torch.equal(disturbed[[0, 2]], trained(backend, schema, images, calm, epochs=4).weights)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_restored_trainer_continues_with_the_same_bits(
    backend: str, problem: tuple[Schema, ImageData], optimizer: str
) -> None:
    schema, images = problem
    models = [mixed(seed, optimizer=optimizer) for seed in range(1, 4)]
    whole = trained(backend, schema, images, models, epochs=2)
    resumed = make_trainer(backend, schema, models, images, BATCH)
    resumed.restore(trained(backend, schema, images, models, epochs=1).save())
    resumed.train_epoch(2)
    assert torch.equal(resumed.weights, whole.weights)


def test_models_of_one_seed_and_init_start_equal_whatever_else_differs(problem: tuple[Schema, ImageData]) -> None:
    schema, _ = problem
    first, second = make_model(7, lr=1e-3), make_model(7, lr=1e-1, activation="relu", optimizer="sgd", dropout=0.5)
    assert np.array_equal(*(initial_weights(schema, model.hyperparameters, model.seed) for model in (first, second)))
    other = make_model(8)
    assert not np.array_equal(*(initial_weights(schema, m.hyperparameters, m.seed) for m in (first, other)))


@pytest.mark.parametrize("init", INITS)
def test_initial_weights_have_the_spread_of_their_name(init: str) -> None:
    schema = build_schema(Mlp(name="mlp", hidden=(300,)), (1, 20, 20), 10)
    flat = initial_weights(schema, make_model(1, init=init, init_std=0.5).hyperparameters, 1)
    weight = flat[: 300 * 400].reshape(300, 400)
    spread = {
        "uniform": np.sqrt(1 / 12),
        "normal": 0.5,
        "truncated_normal": 0.5 * 0.8796,  # a normal distribution cut at two standard deviations
        "kaiming_uniform": np.sqrt(2 / 400),
        "kaiming_normal": np.sqrt(2 / 400),
        "xavier_uniform": np.sqrt(2 / 700),
        "xavier_normal": np.sqrt(2 / 700),
        "orthogonal": np.sqrt(1 / 400),
    }[init]
    assert weight.std() == pytest.approx(spread, rel=0.02)
    assert weight.mean() == pytest.approx(0.5 if init == "uniform" else 0, abs=0.01)
    assert np.all(flat[300 * 400 : 300 * 401] == np.float32(0.01))
    if init == "orthogonal":
        assert np.allclose(weight @ weight.T, np.eye(300), atol=1e-5)
    if init == "truncated_normal":
        assert np.abs(weight).max() <= 1.0


def test_models_of_several_structures_in_one_stack_have_the_bits_of_stacks_of_their_own(
    backend: str, problem: tuple[Schema, ImageData]
) -> None:
    schema, images = problem
    structures = [("tanh", "adam"), ("relu", "sgd"), ("gelu", "rmsprop")]
    groups = [[mixed(seed, activation=a, optimizer=o) for seed in (1, 2)] for a, o in structures]
    together = trained_weights(backend, schema, images, [model for group in groups for model in group])
    # GELU's derivative must be kept, so the kernel for GPUs is another one, which sums the same numbers.
    apart = torch.cat([trained_weights(backend, schema, images, group) for group in groups])
    assert torch.equal(together, apart)


WRONG_IMAGES: dict[str, tuple[Callable[[Subset], Subset], str]] = {
    "a label of as many as there are classes": (
        lambda subset: replace(subset, labels=subset.labels + 1),
        "labels are 1 to 4, expected 0 to 3",
    ),
    "a negative label": (lambda subset: replace(subset, labels=subset.labels - 1), "labels are -1 to 2, expected 0"),
    "a label far away": (
        lambda subset: replace(subset, labels=subset.labels.index_fill(0, torch.tensor([5]), 2**62)),
        f"labels are 0 to {2**62}, expected 0 to 3",
    ),
    "fewer labels": (lambda subset: replace(subset, labels=subset.labels[:-1]), "labels are int64"),
    "more labels": (lambda subset: replace(subset, labels=subset.labels.repeat(2)), "one for every image"),
    "labels in columns": (lambda subset: replace(subset, labels=subset.labels[:, None]), "labels are int64"),
    "labels of 32 bits": (lambda subset: replace(subset, labels=subset.labels.int()), "labels are int32"),
    "smaller images": (lambda subset: replace(subset, images=subset.images[..., :-1]), r"float32 \[\d+, 1, 4, 3\]"),
    "images without channels": (lambda subset: replace(subset, images=subset.images[:, 0]), r"expected float32 \["),
    "images of bytes": (lambda subset: replace(subset, images=subset.images.byte()), "images are uint8"),
    "images of 64 bits": (lambda subset: replace(subset, images=subset.images.double()), "images are float64"),
}
"""Faults of a set of images of four classes and 1 x 4 x 4 pixels, and the message for each."""


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("wrong", WRONG_IMAGES)
def test_images_that_cannot_be_trained_with_are_refused_by_name(
    backend: str, tetris: ImageData, wrong: str, name: str
) -> None:
    change, message = WRONG_IMAGES[wrong]
    schema = build_schema(ARCHITECTURES["mlp"], tetris.input_shape, tetris.classes)
    images = replace(tetris, **{name: change(getattr(tetris, name))})
    with pytest.raises(SpecError, match=rf"the {name} .*{message}"):
        make_trainer(backend, schema, [make_model(1)], images, BATCH)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_training_without_images_is_refused(backend: str, tetris: ImageData, name: str) -> None:
    schema = build_schema(ARCHITECTURES["mlp"], tetris.input_shape, tetris.classes)
    subset: Subset = getattr(tetris, name)
    images = replace(tetris, **{name: Subset(subset.images[:0], subset.labels[:0])})
    with pytest.raises(SpecError, match=f"there are no {name} images"):
        make_trainer(backend, schema, [make_model(1)], images, BATCH)


# --- steps by a counter, and CUDA -------------------------------------------------------------------------------


def stacked_weights(schema: Schema, images: ImageData, models: list[ModelConfig], **settings: Any) -> torch.Tensor:
    """The weights after training by one `StackedTrainer`, on the CPU."""
    trainer = StackedTrainer(schema, models, images, BATCH, **settings)
    for epoch in range(1, EPOCHS + 1):
        trainer.train_epoch(epoch)
    return trainer.weights.cpu()


def test_steps_by_a_counter_give_the_same_bits(problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 5)]
    assert {model.hyperparameters.train_fraction for model in models} == {1.0, 0.5, 0.73}  # some finish an epoch early
    by_counter = stacked_weights(schema, images, models, counted=True)
    assert torch.equal(by_counter, stacked_weights(schema, images, models, counted=False))


def test_a_trainer_that_draws_orders_ahead_may_be_restored_to_any_epoch(tetris: ImageData) -> None:
    schema = build_schema(ARCHITECTURES["mlp"], tetris.input_shape, tetris.classes)
    trainer = StackedTrainer(schema, [mixed(seed) for seed in range(1, 4)], tetris, BATCH, counted=True)
    trainer.train_epoch(1)
    saved = {name: tensor.clone() for name, tensor in trainer.save().items()}
    trainer.train_epoch(2)
    second = trainer.weights.clone()
    trainer.train_epoch(3)
    trainer.restore(saved)
    trainer.train_epoch(2)
    assert torch.equal(trainer.weights, second)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="lacks a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_cuda_agrees_with_the_reference_and_starts_with_the_same_bits(
    problem: tuple[Schema, ImageData], optimizer: str
) -> None:
    schema, images = problem
    changes = {"lr": 2e-4} if optimizer == "rmsprop" else {}
    models = [mixed(seed, optimizer=optimizer, init="kaiming_uniform", **changes) for seed in range(1, 6)]
    (on_cuda,) = make_trainers("torch", schema, models, images.to("cuda"), BATCH)
    (on_cpu,) = make_trainers("torch", schema, models, images, BATCH)
    assert torch.equal(on_cuda.weights.cpu(), on_cpu.weights)
    weights = stacked_weights(schema, images.to("cuda"), models)
    assert median_distance(weights, schema, images, models) <= 1e-5


@pytest.mark.gpu
@needs_cuda
def test_cuda_gives_the_same_bits_with_and_without_graphs_and_again(problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem[0], problem[1].to("cuda")
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 6)]
    replayed = stacked_weights(schema, images, models)
    assert torch.equal(stacked_weights(schema, images, models, counted=False), replayed)
    assert torch.equal(stacked_weights(schema, images, models), replayed)


@pytest.mark.gpu
@needs_cuda
def test_cuda_scores_what_the_cpu_scores(problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 6)]
    on_cpu = StackedTrainer(schema, models, images, BATCH).evaluate()
    on_cuda = StackedTrainer(schema, models, images.to("cuda"), BATCH).evaluate()
    for name, scores in on_cpu.items():
        assert on_cuda[name].loss == pytest.approx(scores.loss, rel=1e-5)
        # A class that wins by a rounding error may lose by one.
        assert on_cuda[name].accuracy == pytest.approx(scores.accuracy, abs=0.06)


@pytest.mark.gpu
@needs_cuda
def test_the_kernel_for_gpus_on_a_gpu_equals_the_reference(problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem
    models = [mixed(seed, optimizer=optimizer) for seed in (1, 2, 3) for optimizer in ("adam", "sgd")]
    trainer = make_trainer("native", schema, models[:4], images.to("cuda"), BATCH)
    for epoch in range(1, EPOCHS + 1):
        trainer.train_epoch(epoch)
    assert median_distance(trainer.weights.cpu(), schema, images, models[:4]) <= 1e-5


@pytest.mark.gpu
@needs_cuda
def test_cuda_resumes_with_the_same_bits(problem: tuple[Schema, ImageData]) -> None:
    schema, images = problem[0], problem[1].to("cuda")
    models = [mixed(seed, init="kaiming_uniform") for seed in range(1, 6)]
    whole, first, resumed = (StackedTrainer(schema, models, images, BATCH) for _ in range(3))
    for epoch in (1, 2):
        whole.train_epoch(epoch)
    first.train_epoch(1)
    resumed.restore(first.save())
    resumed.train_epoch(2)
    assert torch.equal(resumed.weights, whole.weights)
