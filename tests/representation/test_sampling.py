"""Networks drawn from a density over a zoo: draws, audit, the zoo of samples, refusals, the command line."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from samples import TINY_ZOO

from representation import Encoder, load_recipe
from representation.sampling.audit import nearest
from representation.sampling.density import METHODS, Settings, chosen_bandwidth, draw
from representation.sampling.flow import flow_samples
from representation.sampling.sample import sample_zoo
from representation.sampling.space import WeightSpace
from representation.training.start import best_linear_code, start_encoder
from zootools import build, open_zoo
from zootools.choices import SAMPLING_METHODS
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError, StorageError
from zootools.hub.publish import publish
from zootools.spec import parse_spec
from zootools.storage.audit import AUDIT
from zootools.storage.manifest import read_manifest
from zootools.verify import faults, repair
from zootools.zoo import Zoo


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 30 models, one of whose properties does not vary."""
    out = tmp_path_factory.mktemp("source") / "tiny"
    spec = TINY_ZOO | {"seeds": {"range": [1, 30]}, "training": {"epochs": 4, "batch_size": 4}}
    build(parse_spec(spec, "test"), out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """An encoder that begins as a linear code, and is not trained."""
    zoo, recipe = open_zoo(source), load_recipe("reconstruction", ["encoder.latent=20"])
    weights = zoo.split("train").weights()
    out = tmp_path_factory.mktemp("encoder")
    start_encoder(zoo.schema, recipe, weights, best_linear_code(zoo.schema, recipe, weights)).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, source: Path, encoder: Path) -> Path:
    """A zoo of ten samples and two epochs; read only."""
    out = tmp_path_factory.mktemp("sampled") / "zoo"
    sample_zoo(source, out, encoder, count=10, epochs=2, quiet=True)
    return out


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a zoo."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- densities -------------------------------------------------------------------------------------------


def two_points() -> torch.Tensor:
    """Rows at two places, so that numbers depend on each other."""
    return torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).repeat(30, 1)


def test_kernels_draw_numbers_independently_and_joint_kernels_rows() -> None:
    assert tuple(METHODS) == SAMPLING_METHODS
    settings = Settings(400, 0.01, seed=3)
    alone, joint = (draw(method, two_points(), settings, lambda rows: rows[:, 0]) for method in ("kde", "kde-joint"))
    for drawn in (alone, joint):
        assert torch.allclose(drawn.abs(), torch.ones(400, 2), atol=0.06)
    assert 0.4 < float((alone[:, 0] * alone[:, 1] < 0).float().mean()) < 0.6
    assert bool((joint[:, 0] * joint[:, 1] > 0).all())


def test_a_flow_draws_rows_and_not_numbers() -> None:
    drawn = flow_samples(two_points(), 200, 0, width=64, steps=400)
    assert drawn.dtype == torch.float32
    assert float((drawn[:, 0] * drawn[:, 1] > 0).float().mean()) > 0.97
    assert float((drawn.abs().mean(dim=1) - 1).abs().mean()) < 0.25


def test_selection_keeps_what_scores_best() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    means = {
        name: float(draw(name, rows, Settings(20, 0.1), lambda r: r[:, 0])[:, 0].mean())
        for name in METHODS
        if name != "flow"
    }
    assert means["kde"] < 0.6 < 1 < min(means["subsample"], means["bootstrap"], means["gaussian"])


@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_the_chosen_bandwidth_is_that_of_the_data(spread: float) -> None:
    rows = spread * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found = chosen_bandwidth(rows, Settings(2, None))
    assert spread / 6 < found < spread
    assert chosen_bandwidth(rows, Settings(2, 0.7)) == 0.7


def test_draws_are_those_of_their_seed() -> None:
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        if method != "flow":
            first, again, other = (draw(method, rows, Settings(5, 0.1, seed), lambda r: r[:, 0]) for seed in (0, 0, 1))
            assert torch.equal(first, again)
            assert not torch.equal(first, other)
    first, again, other = (flow_samples(rows, 5, seed, width=8, steps=5) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the audit -------------------------------------------------------------------------------------------


def test_copies_with_permuted_neurons_are_found_as_what_they_are(source: Path) -> None:
    zoo = open_zoo(source).last()
    weights, schema = zoo.weights().numpy(), zoo.schema
    order = schema.permutation_index({layer.name: np.arange(layer.outputs)[::-1] for layer in schema.layers[:-1]})
    found = nearest(schema, np.ascontiguousarray(weights[3:9][:, order]), weights)
    assert found.place.tolist() == [3, 4, 5, 6, 7, 8]
    assert found.distance.max() < 1e-6
    models = np.arange(len(weights))
    without = nearest(schema, weights, weights, models, models)
    assert bool((without.place != models).all())
    assert without.distance.min() > 0.1


def test_the_audit_tells_copies_from_new_networks(sampled: Path) -> None:
    imported = open_zoo(sampled).imported
    assert imported is not None
    assert imported.audit is not None
    rows = {row.networks: row for row in imported.audit.rows}
    copies, coarse, new = (
        rows[name] for name in (*(f"training networks with noise 0.0{n}" for n in (2, 4)), "from scratch")
    )
    assert copies.distance < coarse.distance < rows["averages of two neighbours"].distance < new.distance
    assert copies.overlap > coarse.overlap > rows["averages of two neighbours"].overlap > 0
    assert rows["training networks"].closest > coarse.closest
    assert rows["samples"].count == 10
    assert [curve.networks for curve in imported.audit.curves] == ["from scratch", "networks of the zoo"]
    assert all(curve.epochs == [0, 1, 2] for curve in imported.audit.curves)


# --- the zoo of samples ----------------------------------------------------------------------------------


def test_a_zoo_of_samples_is_a_zoo_and_says_what_it_is(sampled: Path, source: Path, tmp_path: Path) -> None:
    assert list(faults(sampled)) == []
    zoo = open_zoo(sampled)
    assert (len(zoo.models), sorted(set(zoo.metadata["epoch"].to_pylist()))) == (10, [0, 1, 2])
    assert zoo.imported is not None
    assert zoo.imported.parent is not None
    assert (zoo.imported.kind, zoo.imported.parent.sha256) == ("sample", read_manifest(source).sha256)
    assert zoo.imported.check.largest_difference == 0
    assert set(zoo.metadata["nearest_model"].to_pylist()) <= set(open_zoo(source).split("train").models)
    assert "init" not in zoo.metadata.column_names
    network = zoo.module(zoo.models[0], 0)
    assert network(torch.zeros(1, *zoo.schema.input_shape)).shape == (1, zoo.schema.classes)
    card = (sampled / "README.md").read_text()
    assert "**These networks were sampled.**" in card
    assert "| training networks with noise 0.02 |" in card
    assert json.loads((sampled / AUDIT).read_text())["rows"][0]["networks"] == "samples"
    shown = CliRunner().invoke(main, ["info", str(sampled)])
    assert "zootools sample, not by training" in shown.output
    assert "audit of the samples" in shown.output
    publish(sampled, "group/samples", hub=tmp_path / "hub", quiet=True)
    assert list(faults(tmp_path / "hub" / "group" / "samples")) == []


def test_the_same_call_gives_the_same_bytes_and_another_seed_others(
    sampled: Path, source: Path, encoder: Path, tmp_path: Path
) -> None:
    sample_zoo(source, tmp_path / "again", encoder, count=10, epochs=2, quiet=True)
    assert digests(tmp_path / "again") == digests(sampled)
    before = (sampled / "zoo.json").stat().st_mtime_ns
    assert sample_zoo(source, sampled, encoder, count=10, epochs=2, quiet=True).audit.rows[0].count == 10
    assert (sampled / "zoo.json").stat().st_mtime_ns == before
    with pytest.raises(SpecError, match=r"holds other samples.*\n.*seed: '0' there, '1' asked for"):
        sample_zoo(source, sampled, encoder, count=10, epochs=2, seed=1, quiet=True)


def test_the_training_of_samples_begins_at_the_samples(sampled: Path) -> None:
    zoo = open_zoo(sampled)
    start, later = (zoo.where(f"epoch == {epoch}").weights() for epoch in (0, 1))
    steps = (later - start).abs().amax(dim=1)
    # Ten steps of Adam with a rate of 0.01 move no weight further than 0.1 or so; an initialisation would be far away.
    assert bool((steps > 0).all())
    assert float(steps.max()) < 0.3


def test_an_audit_that_is_lost_is_found_and_written_again(sampled: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sampled, tmp_path / "copy")
    (copy / AUDIT).unlink()
    assert [fault.name for fault in faults(copy)] == [AUDIT]
    repair(copy)
    assert digests(copy) == digests(sampled)
    values = json.loads((copy / "zoo.json").read_text())
    del values["imported"]["audit"]
    (copy / "zoo.json").write_text(json.dumps(values))
    with pytest.raises(DamagedZooError):
        open_zoo(copy)


def test_an_interrupted_sampling_looks_like_no_zoo_and_the_same_command_finishes_it(
    sampled: Path, source: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "zoo"
    words = ["sample", str(encoder), "--from", str(source), "-o", str(out), "--count", "10", "--epochs", "2", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "zootools", *words], stdout=subprocess.DEVNULL)
    begun = time.monotonic()
    while process.poll() is None and not (out / ".work").exists() and time.monotonic() - begun < 120:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (out / "zoo.json").exists():
        assert CliRunner().invoke(main, ["verify", str(out)]).exit_code != 0
    found = CliRunner().invoke(main, [*words, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["audit"]["rows"][0]["count"] == 10
    assert digests(out) == digests(sampled)


# --- refusals --------------------------------------------------------------------------------------------


def refused(pattern: str, source: Path | Zoo, encoder: Any, tmp_path: Path, **options: Any) -> None:
    with pytest.raises((SpecError, StorageError), match=pattern):
        sample_zoo(source, tmp_path / "out", encoder, quiet=True, **{"count": 4, **options})
    assert not (tmp_path / "out" / "zoo.json").exists()


def test_arguments_that_make_no_sense_are_refused(source: Path, encoder: Path, tmp_path: Path) -> None:
    refused("method: found 'kdd'; did you mean 'kde'", source, encoder, tmp_path, method="kdd")
    refused("count: found 1; expected a whole number from 2", source, encoder, tmp_path, count=1)
    refused("best: found 0; expected a share above 0", source, encoder, tmp_path, best=0)
    refused("bandwidth: found nan", source, encoder, tmp_path, bandwidth=float("nan"))
    refused("1 checkpoints of 1 models are left", source, encoder, tmp_path, where="epoch == 4", best=0.001)
    refused("0 checkpoints of 0 models are left", source, encoder, tmp_path, where="epoch == 99")
    found = CliRunner().invoke(
        main, ["sample", "--from", str(source), "-o", str(tmp_path / "out"), "--bandwidth", "wide"]
    )
    assert (found.exit_code, "expected a number above 0, or auto" in found.output) == (2, True)


def test_networks_that_are_all_equal_or_not_finite_are_refused(source: Path, encoder: Path, tmp_path: Path) -> None:
    constant, broken = (Encoder.from_pretrained(encoder) for _ in range(2))
    assert broken.paths is not None
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.zero_()
        broken.paths.to_weights.bias[3] = torch.nan
    refused("representations are all equal, so there is nothing to draw from", source, constant, tmp_path)
    refused("4 of 4 sampled networks have weights that are NaN or infinite", source, broken, tmp_path)
    with pytest.raises(SpecError, match="1 of 2 networks have weights that are NaN or infinite"):
        WeightSpace().rows(torch.tensor([[1.0, 2.0], [torch.inf, 0.0]]))


def test_an_encoder_of_other_layers_is_refused(source: Path, tmp_path: Path) -> None:
    spec = TINY_ZOO | {"architecture": {"name": "mlp", "hidden": [6], "bias": False}}
    other = Encoder.build(open_zoo(build_other(spec, tmp_path)).schema, load_recipe("smoke").encoder)
    refused("the encoder encoder", source, other, tmp_path)


def build_other(spec: dict[str, Any], tmp_path: Path) -> Path:
    out = tmp_path / "other"
    build(parse_spec(spec | {"seeds": {"range": [1, 2]}}, "test"), out, workers=1, quiet=True)
    return out


def test_networks_of_several_activations_are_refused(look_zoo: Path, tmp_path: Path) -> None:
    refused(r"the chosen networks have the activations relu, tanh", look_zoo, None, tmp_path, best=1.0)


def test_without_images_there_are_no_samples(tmp_path: Path) -> None:
    spec = parse_spec(
        TINY_ZOO | {"images": {"name": "digits", "train": 40, "test": 40}, "seeds": {"range": [1, 6]}}, "test"
    )
    build(spec, tmp_path / "digits", workers=1, quiet=True)
    zoo = open_zoo(tmp_path / "digits")
    assert zoo.stored_spec is not None
    lost = zoo.stored_spec.model_copy(
        update={"images": parse_spec(TINY_ZOO | {"images": {"name": "mnist", "train": 40}}, "test").images}
    )
    refused(
        "no images at hand: the files of mnist", replace(zoo, stored_spec=lost), None, tmp_path, data=tmp_path / "no"
    )


def test_a_zoo_that_was_imported_is_refused(tmp_path: Path, source: Path) -> None:
    refused("not known how its networks were trained", replace(open_zoo(source), stored_spec=None), None, tmp_path)


# --- samples from weights, and the command ---------------------------------------------------------------


def test_the_command_samples_from_aligned_weights(source: Path, tmp_path: Path) -> None:
    words = ["sample", "--from", str(source), "--align", "--best", "1", "--count", "4", "-o", str(tmp_path / "out")]
    found = CliRunner().invoke(main, [*words, "--bandwidth", "auto", "--quiet"])
    assert found.exit_code == 0, found.output
    assert "4 networks sampled from tiny" in found.output
    assert "averages of two neighbours" in found.output
    zoo = open_zoo(tmp_path / "out")
    assert zoo.imported is not None
    assert zoo.imported.options["space"] == "weights"
    assert "held-out likelihood" in zoo.imported.notes[0]
