"""Training and scoring on a population that does not fit into memory: it is read in parts, with the same result."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from representation import Encoder, compare
from representation.dataset import ZooDataset
from representation.networks import MappedNetworks, in_parts, read_networks, select
from representation.recipes import load_recipe
from representation.training.train import Weights
from zootools import import_zoo, open_zoo
from zootools.architectures import build_schema
from zootools.spec import Mlp

ROOM = 48 << 20
"""Bytes that a process may allocate beyond those after opening the zoo."""
MODELS, EPOCHS = 600, 30

TRAINING = """
import resource, sys
from pathlib import Path
import torch
import representation.comparison, representation.encoders.encoder
import representation.networks, representation.training.trainer
from representation import compare, load_recipe, train_encoder
from zootools import open_zoo

torch.set_num_threads(1)
# The blocks that both processes compute in; by default they need some hundred megabytes.
representation.networks.AT_ONCE = representation.encoders.encoder.VALUES_AT_ONCE = 1 << 17
representation.training.trainer.VALIDATED = representation.comparison.MAX_BATCH = 100
room, folder, out = int(sys.argv[1]), *map(Path, sys.argv[2:])
changes = ["encoder={kind: set, latent: 8, width: 8, hidden: 16}", "loss.statistics=1", "largest_weight=4.0"]
recipe = load_recipe("smoke", [*changes, "training={epochs: 2, steps: 20, batch_size: 20}"])
zoo = open_zoo(folder)
zoo.files.check(list(zoo.files.files))  # in threads, whose stacks would count


def scored(zoo, encoder):
    settings = {"baselines": ["s(W)"], "targets": ["test_accuracy", "epoch"], "recipe": "smoke", "quiet": True}
    return compare(zoo, {"mine": encoder.embed}, **settings).table.to_pylist()


# Packages import some of their modules when they are first used, which takes more than the weights.
some = zoo.where("epoch < 3")
scored(some, train_encoder(zoo.where("epoch == 1"), recipe, out / "first", quiet=True))
if room:
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + room,) * 2)
    try:
        zoo.weights()
        sys.exit("the population fits into memory")
    except MemoryError:
        pass
encoder = train_encoder(zoo, recipe, out, quiet=True)
print(*scored(zoo, encoder), sep="\\n")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 18,000 made-up checkpoints, in the order of the models, not of its files; three times `ROOM`."""
    folder = tmp_path_factory.mktemp("large")
    schema = build_schema(Mlp(name="mlp", hidden=(8,)), (1, 16, 16), 4)
    draws = np.random.default_rng(0)
    weights = draws.normal(size=(MODELS * EPOCHS, schema.size)).astype(np.float32)
    weights[::97, 5] = 10  # more than the largest weight of the recipe
    model, epoch = np.divmod(np.arange(len(weights)), EPOCHS)
    columns = {
        "model_id": [f"m{number}" for number in model],
        "epoch": epoch,
        "test_accuracy": draws.random(len(model)),
    }
    flat = pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), schema.size)
    (folder / "files").mkdir()
    pq.write_table(pa.table(columns | {"weights": flat}), folder / "files" / "data.parquet", row_group_size=2000)
    import_zoo("parquet", folder / "files", folder / "zoo", model_schema=schema, check=0, quiet=True)
    assert 4 * weights.size > 2.9 * ROOM
    return folder / "zoo"


@pytest.mark.slow
def test_encoder_and_scores_of_a_population_three_times_the_memory_are_those_of_one_that_fits(
    large: Path, tmp_path: Path
) -> None:
    found = []
    for room in (ROOM, 0):
        words = [sys.executable, "-c", TRAINING, str(room), str(large), str(tmp_path / str(room))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / f"cache-{room}")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert {f"'method': '{name}'" in done.stdout for name in ("mine", "s(W)")} == {True}
        found.append((done.stdout, (tmp_path / str(room) / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_scores_of_networks_in_files_are_those_of_networks_in_memory(
    look_zoo: Path, look_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, encoder, found = open_zoo(look_zoo), Encoder.from_pretrained(look_encoder), []
    settings = {"baselines": ["W", "s(W)", "PCA-linear", "PCA-rbf"], "targets": ["activation", "test_accuracy"]}
    for share in (0.0, 1.0):
        monkeypatch.setattr("representation.dataset.SHARE", share)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(share)))
        data = ZooDataset.of(zoo, load_recipe("smoke"))
        assert isinstance(data.splits["train"].networks, torch.Tensor) == bool(share)
        results = compare(zoo, {"mine": encoder.embed}, recipe="smoke", quiet=True, **settings)
        found.append((data.digest, [str(note) for note in results.notes], results.excluded, results.table))
    assert set(found[0][3]["method"].to_pylist()) == {"mine", *settings["baselines"]}
    assert found[0] == found[1]


def test_networks_in_files_are_those_in_memory(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    here, there = zoo.weights(), read_networks(zoo, share=0)
    assert isinstance(there, MappedNetworks)
    rows = torch.randperm(len(here), generator=torch.Generator().manual_seed(0))[:20]
    assert (there.shape, len(there)) == (here.shape, len(here))
    assert torch.equal(there[rows], here[rows])
    for chosen in (rows, here[:, 0] > 0):
        assert torch.equal(torch.cat(list(in_parts(select(there, chosen)))), here[chosen])
    some = [torch.cat(list(networks.split(7))) for networks in (here, there, there.to(torch.device("cpu")))]
    assert all(torch.equal(part, here) for part in some)


def test_weights_for_other_machines_are_in_memory(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("representation.training.train.SHARE", 0.0)
    zoo, recipe = open_zoo(tiny_zoo), load_recipe("smoke")
    streamed, whole = Weights.of(zoo, recipe), Weights.of(zoo, recipe, stream=False)
    assert isinstance(streamed.train, MappedNetworks)
    assert isinstance(whole.train, torch.Tensor)
    assert streamed.identity(recipe, 0) == whole.identity(recipe, 0)
