"""Training an encoder: what it learns, that it can be interrupted anywhere, and what it refuses."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from samples import make_spec
from torch import nn

from representation.encoders.encoder import Encoder
from representation.recipes import Recipe, load_recipe
from representation.training.optimizer import LOWERED, Adam, Plateau, one_cycle
from representation.training.train import train_encoder, training_data
from representation.training.trainer import EncoderTrainer, TrainerState, choose_precision
from zootools import Zoo, build, open_zoo
from zootools.errors import BusyError, SpecError
from zootools.filesystem.lock import FolderLock
from zootools.native.compiler import processor_features


def recipe(*overrides: str) -> Recipe:
    return load_recipe("smoke", ["training.batch_size=5", *overrides])


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Zoo:
    return open_zoo(tiny_zoo)


def weights_in(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def trainer(zoo: Zoo, settings: Recipe, seed: int = 0) -> EncoderTrainer:
    train, validation = (part.weights() for part in training_data(zoo, settings).values())
    return EncoderTrainer(zoo.schema, train, validation, settings, seed, torch.device("cpu"))


def test_a_training_lowers_the_loss_and_explains_the_weights(zoo: Zoo) -> None:
    settings = recipe("training.epochs=60", "loss.kind=ED", "training.lr=1e-2", "training.batch_size=20")
    training = trainer(zoo, settings)
    before = training.validate()
    for _ in range(60):
        training.train_epoch()
    after = training.validate()
    assert after["total"] < 0.8 * before["total"]
    assert after["r2"] > before["r2"]


def test_the_r2_score_is_one_minus_the_error_over_the_deviation_from_the_mean(zoo: Zoo) -> None:
    training = trainer(zoo, recipe("augmentation.permute=false"))
    weights = training.validation.double()
    error = (training.encoder.reconstruct(weights).double() - weights).square().sum()
    expected = 1 - error / (weights - weights.mean(0)).square().sum()
    assert training.validate()["r2"] == pytest.approx(expected.item(), rel=1e-4)


def test_validation_is_on_the_same_views_every_time_and_leaves_no_trace(zoo: Zoo) -> None:
    first, second = trainer(zoo, recipe()), trainer(zoo, recipe())
    assert first.validate() == first.validate()
    first.train_epoch()
    second.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True))


def test_bfloat16_learns_nearly_the_same(zoo: Zoo) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        training = trainer(zoo, recipe(f"training.precision={precision}", "training.lr=1e-2"))
        for _ in range(20):
            means = training.train_epoch()
        assert {p.dtype for p in training.encoder.parameters()} == {torch.float32}
        losses[precision] = means["total"]
    assert losses["fp32"] != losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


def test_auto_does_not_take_bfloat16_where_the_processor_would_emulate_it() -> None:
    if {"avx512_bf16", "amx_bf16"} & processor_features():
        pytest.skip("lacks a processor without bfloat16 instructions")
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"  # slower, but as asked for


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="lacks a CUDA device")
@pytest.mark.parametrize("name", ["smoke", "default", "reconstruction"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_cuda_trains_what_embeds_on_the_cpu(zoo: Zoo, tmp_path: Path, name: str, precision: str) -> None:
    few = load_recipe(name, [f"training.precision={precision}", "training.epochs=2", "training.steps=3"])
    encoder = train_encoder(zoo, few, tmp_path, quiet=True, device="cuda")
    z = encoder.embed(zoo.weights())
    torch.testing.assert_close(encoder.to("cuda").embed(zoo.weights()), z, rtol=1e-3, atol=1e-3)


# --- the folder -----------------------------------------------------------------------------------------------


def test_the_same_call_again_returns_the_same_encoder_without_training(zoo: Zoo, tmp_path: Path) -> None:
    encoder = train_encoder(zoo, recipe(), tmp_path, quiet=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "config.json", "log.jsonl", "model.safetensors", "recipe.yaml", "training.json"}
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    train_encoder(zoo, recipe(), tmp_path, quiet=True)
    again = train_encoder(zoo, recipe("description=the same in other words"), tmp_path, quiet=True)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    weights = zoo.weights()
    assert torch.equal(again.embed(weights), encoder.embed(weights))
    assert torch.equal(Encoder.from_pretrained(str(tmp_path)).embed(weights), encoder.embed(weights))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe()


def test_the_log_has_a_line_for_every_epoch_and_the_best_is_kept(zoo: Zoo, tmp_path: Path) -> None:
    train_encoder(zoo, recipe("training.best=reconstruction"), tmp_path, quiet=True, epochs=5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    best = min(lines, key=lambda line: line["validation_reconstruction"])
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["best"]["epoch"] == best["epoch"]
    assert record["best"]["reconstruction"] == record["best"]["score"] == best["validation_reconstruction"]
    assert record["epochs"] == 5


def test_the_seed_decides(zoo: Zoo, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train_encoder(zoo, recipe(), tmp_path / name, seed, quiet=True)
        torch.rand(1)  # what the caller draws makes no difference
    assert weights_in(tmp_path / "a") == weights_in(tmp_path / "b") != weights_in(tmp_path / "c")
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    train_encoder(zoo, recipe(), tmp_path / "d", quiet=True)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("schedule", "lr"), [("plateau", 1e-6), ("one_cycle", 0.1), ("constant", 0.1)])
def test_a_restored_trainer_continues_with_the_same_bits(zoo: Zoo, schedule: str, lr: float) -> None:
    settings = recipe(f"training.schedule={schedule}", f"training.lr={lr}", "training.epochs=30", "encoder.dropout=0.2")
    whole, first = trainer(zoo, settings), trainer(zoo, settings)
    for _ in range(30):
        means = whole.train_epoch()
    for _ in range(14):
        first.train_epoch()
    tensors, values = first.save()
    resumed = trainer(zoo, settings)
    resumed.restore(tensors, TrainerState.model_validate_json(values.model_dump_json()))
    for _ in range(16):
        again = resumed.train_epoch()
    assert again == means
    for module in ("encoder", "head"):
        pairs = zip(
            getattr(whole, module).state_dict().values(), getattr(resumed, module).state_dict().values(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    rate = whole.optimizer.rates[0]
    assert resumed.optimizer.rates[0] == rate
    assert (rate < lr) is (schedule != "constant")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_trainer_restored_within_an_epoch_continues_with_the_same_bits(zoo: Zoo, dropout: float) -> None:
    settings = recipe("training.schedule=one_cycle", f"encoder.dropout={dropout}", "training.steps=8")
    whole, states = trainer(zoo, settings), list[tuple[bytes, str]]()

    def keep(share: float) -> None:
        tensors, values = whole.save()
        states.append((save(tensors), values.model_dump_json()))

    whole.train_epoch()
    means = whole.train_epoch(keep)
    tensors, values = load(states[4][0]), TrainerState.model_validate_json(states[4][1])
    assert (values.epoch, values.step) == (1, 5)
    resumed, shares = trainer(zoo, settings), list[float]()
    resumed.restore(tensors, values)
    torch.rand(1)  # what others draw makes no difference
    assert resumed.train_epoch(shares.append) == means
    assert shares == [6 / 8, 7 / 8, 1]
    for found, expected in zip(resumed.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert resumed.train_epoch() == whole.train_epoch()


def test_the_optimizer_has_the_bits_of_the_one_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(30, 5), nn.Linear(30, 5)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Adam([ours, nn.Linear(2, 2)], 1e-2, 1e-3, widest=None)  # parameters without a gradient stay out
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, weight_decay=1e-3, fused=True)
    schedule, plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, factor=0.3, patience=10), Plateau()
    for step in range(40):
        x = torch.randn(8, 30)
        for layer, taken in ((ours, optimizer), (theirs, reference)):
            taken.zero_grad()
            layer(x).square().mean().backward()
            taken.step()
        loss = 1 / min(step + 1, 4)
        schedule.step(loss)
        if plateau.is_reached(loss):
            optimizer.rates = tuple(LOWERED * rate for rate in optimizer.rates)
        assert optimizer.rates[0] == reference.param_groups[0]["lr"]
    assert optimizer.rates[0] == pytest.approx(1e-2 * LOWERED**3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_one_cycle_rises_and_falls() -> None:
    assert [round(one_cycle(p), 3) for p in (0.0, 0.025, 0.05, 0.525, 1.0)] == [0.0, 0.5, 1.0, 0.5, 0.0]


KILLED = """
import signal, sys, torch
from pathlib import Path
from representation.recipes import load_recipe
from representation.training.train import Weights, train_epochs
from zootools import open_zoo
torch.set_num_threads(1)
recipe = load_recipe("smoke", ["training.batch_size=5", "training.epochs=25"])
weights = Weights.of(open_zoo(sys.argv[1]), recipe, True)
for epoch, _ in enumerate(train_epochs(weights, recipe, Path(sys.argv[2]), quiet=True), 1):
    if epoch == 20:
        signal.pause()
"""
"""A training that does not end before it is killed."""


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_with_the_same_bytes(zoo: Zoo, tmp_path: Path) -> None:
    settings, whole, killed = recipe("training.epochs=25"), tmp_path / "whole", tmp_path / "killed"
    train_encoder(zoo, settings, whole, quiet=True)
    log, command = killed / "log.jsonl", [sys.executable, "-c", KILLED, str(zoo.folder), str(killed)]
    # Without what this process has set for its products: the training must see to that itself.
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    with subprocess.Popen(command, env=environment) as process:
        lines = random.randint(3, 20)
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(log.read_text().splitlines()) < 25
    assert not (killed / "training.json").exists()
    with log.open("a") as file:
        file.write('{"epoch": 99')  # what a writer may leave that dies in the middle of a line
    train_encoder(zoo, settings, killed, quiet=True)
    assert weights_in(killed) == weights_in(whole)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (killed, whole)
    ]
    for line in [*logs[0], *logs[1]]:
        del line["seconds"]
    assert logs[0] == logs[1]


KILLED_WITHIN_AN_EPOCH = """
import sys, torch
from pathlib import Path
from representation.recipes import load_recipe
from representation.training import train
from zootools import open_zoo
torch.set_num_threads(1)
train.SAVED_EVERY = 0.0
recipe = load_recipe("smoke", ["training.batch_size=5", "training.epochs=2", "training.steps=300"])
train.train_encoder(open_zoo(sys.argv[1]), recipe, Path(sys.argv[2]), quiet=True)
"""
"""A training that saves every step, not only those that are a minute after the last."""


@pytest.mark.slow
def test_a_training_killed_within_an_epoch_resumes_there(zoo: Zoo, tmp_path: Path) -> None:
    settings, whole, killed = recipe("training.epochs=2", "training.steps=300"), tmp_path / "whole", tmp_path / "killed"
    train_encoder(zoo, settings, whole, quiet=True)
    state = killed / ".work" / "state.safetensors"
    with subprocess.Popen([sys.executable, "-c", KILLED_WITHIN_AN_EPOCH, str(zoo.folder), str(killed)]) as process:
        while process.poll() is None and not state.exists():
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with safe_open(state, "pt") as file:
        saved = json.loads(file.metadata()["training"])
    assert (saved["epoch"], saved["best"]) == (0, None)
    assert 0 < saved["step"] < 300
    train_encoder(zoo, settings, killed, quiet=True)
    assert weights_in(killed) == weights_in(whole)
    epochs = [json.loads(line)["epoch"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]
    assert json.loads((killed / "training.json").read_text())["seconds"] > saved["seconds"] > 0


class Trackio(ModuleType):
    """Has the functions of trackio that are called here; the tests do not need trackio installed."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> None:
        self.calls.append(("init", arguments))

    def log(self, line: dict[str, Any]) -> None:
        self.calls.append(("log", line))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_every_epoch_is_logged_to_trackio_when_asked(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    train_encoder(zoo, recipe(), tmp_path / "out", quiet=True, track="my zoo")
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [name for name, _ in trackio.calls] == ["init", "log", "log", "finish"]
    assert trackio.calls[0][1]["project"] == "my zoo"
    assert [value for name, value in trackio.calls if name == "log"] == lines
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SpecError, match="needs trackio: pip install"):
        train_encoder(zoo, recipe(), tmp_path / "without", quiet=True, track="my zoo")


def test_progress_says_how_long_it_will_take(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_encoder(zoo, recipe(), tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"training: \d of 2 epochs in \d+s, about .* left", captured.err)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "seed", "message"),
    [
        (["training.lr=0.5"], 0, "recipe.training.lr: 0.001 there, 0.5 now"),
        ([], 1, "seed: 0 there, 1 now"),
        (["epochs.first=0"], 0, "recipe.epochs.first: default there, 0 now"),
    ],
)
def test_a_folder_with_another_training_is_refused(
    zoo: Zoo, tmp_path: Path, overrides: list[str], seed: int, message: str
) -> None:
    train_encoder(zoo, recipe(), tmp_path, quiet=True)
    with pytest.raises(SpecError, match="holds another training; use another folder") as error:
        train_encoder(zoo, recipe(*overrides), tmp_path, seed, quiet=True)
    assert message in str(error.value)
    assert not (tmp_path / ".work").exists()


def test_two_trainings_in_one_folder_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    with FolderLock(tmp_path / ".work" / "lock"), pytest.raises(BusyError, match="another process is at work there"):
        train_encoder(zoo, recipe(), tmp_path, quiet=True)


def test_a_loss_that_is_no_longer_finite_is_named(zoo: Zoo, tmp_path: Path) -> None:
    settings = recipe("training.lr=100", "loss.kind=ED", "encoder={kind: feed_forward, latent: 6}")
    with pytest.raises(SpecError, match="no longer finite after epoch"):
        train_encoder(zoo, settings, tmp_path, quiet=True, epochs=20)


def test_zoos_that_hold_nothing_to_learn_from_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    train = zoo.split("train").models
    cases = {
        "nothing to learn from: no checkpoints are left": zoo.where(pc.field("epoch") > 100),
        "the validation split has 0 of the zoo's": zoo.split("train"),
        r"the train split has 1 of the zoo's \d+ models": zoo.where(
            (pc.field("split") != "train") | (pc.field("model_id") == train[0])
        ),
        r"epochs are all but 0, and its .* epochs \[0\]; epochs.first=0 takes them": zoo.where(pc.field("epoch") == 0),
    }
    for message, part in cases.items():
        with pytest.raises(SpecError, match=message):
            train_encoder(part, recipe(), tmp_path / "out", quiet=True)


def test_checkpoints_that_are_not_finite_are_left_out_and_counted(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(zoo.folder, folder)
    stack, epoch, row = zoo.split("train").metadata.select(["stack", "epoch", "row"]).to_pylist()[-1].values()
    shard = folder / f"checkpoints/stack-{stack:05d}/epoch-{epoch:04d}.safetensors"
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(shard)
    tensors["fc1.weight"] = tensors["fc1.weight"].clone()
    tensors["fc1.weight"][row, 0, 0] = float("nan")
    save_file(tensors, shard, metadata)
    encoder = train_encoder(open_zoo(folder, verify=False), recipe(), tmp_path / "out")
    assert re.search(r"1 of \d+ train checkpoints are left out: their weights are not finite", capsys.readouterr().err)
    assert torch.isfinite(encoder.embed(zoo.weights())).all()


def test_a_zoo_of_which_all_models_diverged_is_refused_by_that_name(tmp_path: Path) -> None:
    spec = make_spec(
        images={"name": "tetris", "train": 20, "test": 20, "noise_train": 0.2, "noise_test": 0.8},
        architecture={"name": "mlp", "hidden": [5]},
        grid={"activation": ["relu"], "init": ["normal"], "optimizer": ["sgd"], "lr": [100.0], "weight_decay": [100.0]},
        seeds={"range": [1, 4]},
        training={"epochs": 3, "batch_size": 1},
    )
    build(spec, tmp_path / "zoo", workers=1, quiet=True)
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.counts.diverged == 4
    with pytest.raises(SpecError, match="no checkpoints are left; 4 of its 4 models diverged"):
        train_encoder(zoo, recipe(), tmp_path / "out", quiet=True)
