"""One training on several threads: the same numbers as on one, the same bits every time, and no trace."""

from collections.abc import Callable

import pytest
import torch

from representation.recipes import Recipe, load_recipe
from representation.training.threads import LEAST
from representation.training.trainer import EncoderTrainer
from zootools.architectures import Schema, build_schema
from zootools.spec import Cnn, Mlp

MLP = build_schema(Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), 4)
CNN = build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10)
BATCH = 2 * LEAST
SMALL = [
    "encoder.width=8",
    "encoder.hidden=16",
    f"training.batch_size={BATCH}",
    "training.steps=3",
    "training.epochs=2",
]


@pytest.fixture
def with_threads() -> Callable[[int, Schema, Recipe], EncoderTrainer]:
    """Return a function that makes a trainer with at most a given number of threads."""

    def make(threads: int, schema: Schema, recipe: Recipe) -> EncoderTrainer:
        weights = torch.rand(BATCH, schema.size, generator=torch.Generator().manual_seed(0)) - 0.5
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return EncoderTrainer(schema, weights, weights[:9], recipe, 0, torch.device("cpu"))
        finally:
            torch.set_num_threads(before)

    return make


@pytest.mark.parametrize("schema", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("changes", [[], ["loss.kind=ED"], ["loss.kind=Ec"], ["encoder.latent=20"]], ids=" ".join)
def test_three_threads_give_the_loss_and_gradients_of_one(
    with_threads: Callable[..., EncoderTrainer], schema: Schema, changes: list[str]
) -> None:
    # On processors with bfloat16 instructions, precision auto rounds far more than the order of a sum changes.
    recipe = load_recipe("default", [*SMALL, "training.precision=fp32", *changes])
    found = []
    for threads in (1, 3):
        trainer = with_threads(threads, schema, recipe)
        assert trainer.coded.threads == threads
        terms = trainer.loss(trainer.weights, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        terms.total.backward()
        gradients = {name: parameter.grad for name, parameter in trainer.encoder.named_parameters()}
        found.append((terms, gradients))
    (terms, gradients), (threaded_terms, threaded_gradients) = found
    torch.testing.assert_close(torch.stack(threaded_terms), torch.stack(terms), rtol=1e-4, atol=1e-5)
    assert any(gradient is not None for gradient in gradients.values())
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    for name, gradient in gradients.items():
        assert (gradient is None) == (threaded_gradients[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(threaded_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_number_of_threads_gives_the_same_bits_every_time(
    with_threads: Callable[..., EncoderTrainer], precision: str
) -> None:
    recipe = load_recipe("default", [*SMALL, f"training.precision={precision}"])
    first, second, resumed = (with_threads(2, MLP, recipe) for _ in range(3))
    assert first.train_epoch() == second.train_epoch()
    resumed.restore(*second.save())
    assert first.train_epoch() == second.train_epoch() == resumed.train_epoch()
    assert first.validate() == second.validate() == resumed.validate()
    states = [trainer.encoder.state_dict() for trainer in (first, second, resumed)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name


@pytest.mark.parametrize(
    "changes",
    [["encoder.dropout=0.1"], ["encoder.attention_dropout=0.1"]],
    ids=["dropout", "dropout of the attention"],
)
def test_encoders_that_draw_numbers_use_one_thread(
    with_threads: Callable[..., EncoderTrainer], changes: list[str]
) -> None:
    none = ["encoder.dropout=0", "encoder.attention_dropout=0"]
    assert with_threads(2, MLP, load_recipe("smoke", none)).coded.threads == 2
    assert with_threads(2, MLP, load_recipe("smoke", [*none, *changes])).coded.threads == 1


def test_threads_of_the_process_stay_as_they_are(with_threads: Callable[..., EncoderTrainer]) -> None:
    before = torch.get_num_threads()
    with_threads(3, MLP, load_recipe("default", SMALL)).train_epoch()
    assert torch.get_num_threads() == before
