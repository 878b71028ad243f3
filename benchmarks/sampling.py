"""Accuracies of sampled networks beside published ones, with their audit.

    zootools build mnist_uniform_2022 --models 200 --epochs 25
    python benchmarks/sampling.py cnn zoos/mnist_uniform_2022 --out /path/with/space
    python benchmarks/sampling.py weights zoos/mnist_seed
    python benchmarks/sampling.py mlp --out /path/with/space --data /path/to/torchvision/data

``cnn`` trains an encoder on the epochs 21 to 25 of a zoo, unless ``--encoder`` names one, samples networks by each of
``--methods``, trains them on, and prints test accuracies at the epochs of SANE's Table 3. ``mlp`` builds 100 MLPs on
MNIST, and prints the accuracy of flow samples of their weights, with velocities of two widths, with and without
alignment, beside DeepWeightFlow's. Both print the audits, and write all figures to ``sampling.json`` in ``--out``.
``weights`` prints the accuracies of densities over the weights of a zoo, without any encoder.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# The folder of a script comes first on the path, where representation.py would hide the package: move it last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch

from representation.align_zoo import medoid
from representation.alignment import aligned
from representation.recipes import load_recipe
from representation.sampling.audit import TrainingNetworks, audit
from representation.sampling.density import Settings, draw
from representation.sampling.flow import STEPS, flow_samples
from representation.sampling.report import Sampled
from representation.sampling.sample import sample_zoo
from representation.sampling.source import Source
from representation.training.train import train_encoder
from zootools import build, open_zoo
from zootools.choices import SAMPLING_METHODS
from zootools.images.datasets import Subset
from zootools.spec import parse_spec
from zootools.storage.audit import Audit, Curve

EPOCHS = (0, 1, 5, 25)
"""Epochs of training after sampling."""
PUBLISHED = {
    "scratch": ("about 10", "20.6 ± 1.6", "36.7 ± 5.2", "83.3 ± 2.6"),
    "S_KDE30 (2022)": ("68.6 ± 6.7", "83.7 ± 1.3", "92.4 ± 0.7", "93.0 ± 0.7"),
    "SANE_KDE30": ("84.8 ± 0.8", "85.5 ± 0.8", "87.5 ± 0.7", "92.0 ± 0.3"),
    "SANE_SUB": ("86.7 ± 0.8", "87.5 ± 0.6", "89.0 ± 0.4", "92.3 ± 0.4"),
    "SANE_GAUSS": ("20.8 ± 0.1", "61.3 ± 3.1", "83.4 ± 0.8", "94.2 ± 0.4"),
}
"""Test accuracies on MNIST in percent: SANE (ICML 2024), Table 3."""
PUBLISHED_MLP = {(512, True): "96.17 ± 0.31", (512, False): "96.19 ± 0.27", (64, True): "57.80 ± 9.85"}
PUBLISHED_MLP[64, False] = "25.54 ± 12.90"
"""Of flow samples by the width of the velocity, aligned or not: DeepWeightFlow (ICLR 2026); originals 96.32 ± 0.20."""
MLP_ZOO = {
    "name": "mnist_mlp",
    "description": "100 MLPs on MNIST that differ in their seed only.",
    "images": {"name": "mnist", "train": 60_000, "mean": 0.1307, "std": 0.3081},
    "architecture": {"name": "mlp", "hidden": [32, 32]},
    "grid": {"activation": "relu", "init": "kaiming_uniform", "optimizer": "adam", "lr": 1e-3},
    "seeds": {"range": [1, 100]},
    "training": {"epochs": 5, "batch_size": 64, "train_metrics_images": 1000, "checkpoint_epochs": [0, 5]},
    "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
}


@click.group()
def main() -> None:
    """Print the accuracies of sampled networks beside published ones."""


@main.command()
@click.argument("zoo", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--encoder", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help="Changes of the recipe 'reconstruction'.")
@click.option("--align", is_flag=True, help="Align the networks before.")
@click.option("--methods", default="kde,kde-joint,flow", show_default=True)
@click.option("--count", default=48, show_default=True)
@click.option("--epochs", default=25, show_default=True)
@click.option("--data", type=click.Path(path_type=Path))
def cnn(
    zoo: Path,
    out: Path,
    encoder: Path | None,
    overrides: Sequence[str],
    methods: str,
    **sampling: Any,
) -> None:
    """Sample from a zoo of MNIST CNNs by several methods; ``sampling`` are further arguments of `sample_zoo`."""
    source = open_zoo(zoo)
    if encoder is None:
        encoder, begun = out / "encoder", time.process_time()
        recipe = load_recipe("reconstruction", ["epochs.first=21", "epochs.last=25", *overrides])
        train_encoder(source, recipe, encoder)
        click.echo(f"encoder: {time.process_time() - begun:.0f} processor seconds")
    results: dict[str, Sampled] = {}
    for method in methods.split(","):
        assert method in SAMPLING_METHODS, method
        results[method] = sample_zoo(
            source,
            out / method,
            encoder,
            method=method,
            where="epoch >= 21 and epoch <= 25",
            **sampling,
        )
        # Written after every method, because all of them take hours.
        write(out, {name: sampled.to_json() for name, sampled in results.items()})
        show_audit(method, results[method].audit)
    click.echo(f"\n{'test accuracy in %, after epochs of training':<44}" + "".join(f"{epoch:>14}" for epoch in EPOCHS))
    for name, values in PUBLISHED.items():
        click.echo(f"{'published: ' + name:<44}" + "".join(f"{value:>14}" for value in values))
    for name, curve in curves(results):
        click.echo(f"{name:<44}" + "".join(f"{score(curve, epoch):>14}" for epoch in EPOCHS))


def curves(results: dict[str, Sampled]) -> Iterator[tuple[str, Curve]]:
    """Yield the rows of the table: what all methods share once, then every method."""
    for curve in next(iter(results.values())).audit.curves:
        yield f"{curve.networks}, trained on" if "zoo" in curve.networks else curve.networks, curve
    for method, sampled in results.items():
        yield f"samples: {method}", sampled.accuracy


def score(curve: Curve, epoch: int) -> str:
    """Return the accuracy at an epoch in percent, or nothing."""
    if epoch not in curve.epochs:
        return ""
    place = curve.epochs.index(epoch)
    return f"{100 * curve.mean[place]:.1f} ± {100 * curve.std[place]:.1f}"


@main.command()
@click.argument("zoo", type=click.Path(exists=True, path_type=Path))
@click.option("--where", default="epoch >= 21", show_default=True)
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--count", default=24, show_default=True)
@click.option("--images", default=2000, show_default=True, help="Test images, from the first.")
def weights(zoo: Path, where: str, data: Path | None, count: int, images: int) -> None:
    """Print what densities over weights give without any encoder, as the weights are and after alignment."""
    torch.set_num_threads(1)
    source = Source.of(open_zoo(zoo), where, 0.3)
    trainer, networks = source.trainer(data, 0), source.chosen.weights()
    test = Subset(trainer.images.test.images[:images], trainer.images.test.labels[:images])
    together = aligned(trainer.schema, networks, networks[medoid(source.chosen, networks)])

    def accuracy(rows: torch.Tensor) -> float:
        return 100 * float(trainer.accuracy(rows.numpy(), test).mean())

    click.echo(f"{len(networks)} checkpoints of {len(source.chosen.models)} models: {accuracy(networks):.1f}")
    for name, rows in (("as they are", networks), ("aligned", together)):
        click.echo(f"mean of the networks, {name}: {accuracy(rows.mean(dim=0, keepdim=True)):.1f}")
        for method in ("kde", "kde-joint", "flow"):
            drawn = draw(method, rows, Settings(count), lambda drawn: drawn[:, 0])
            click.echo(f"{method}, {name}: {accuracy(drawn):.1f}")


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--count", default=100, show_default=True)
@click.option("--steps", default=STEPS, show_default=True, help="Steps of the training of a flow.")
def mlp(out: Path, data: Path | None, count: int, steps: int) -> None:
    """Sample the weights of 100 MNIST MLPs by flows."""
    torch.set_num_threads(1)
    build(parse_spec(MLP_ZOO, "benchmark"), out / "mnist_mlp", data=data)
    source = Source.of(open_zoo(out / "mnist_mlp"), "epoch == 5", 1.0)
    trainer = source.trainer(data, 0)
    networks, results = source.chosen.weights(), dict[str, Any]()
    together = aligned(trainer.schema, networks, networks[medoid(source.chosen, networks)])
    original = trainer.accuracy(networks.numpy(), trainer.images.test)
    click.echo(f"originals {100 * original.mean():.2f} ± {100 * original.std():.2f} (published 96.32 ± 0.20)")
    for (width, align), published in PUBLISHED_MLP.items():
        begun = time.process_time()
        samples = flow_samples(together if align else networks, count, 0, width=width, steps=steps).numpy()
        seconds = time.process_time() - begun
        training = TrainingNetworks(networks.numpy(), source.model_numbers())
        found = audit(samples, training, networks[:0].numpy(), trainer, 0)
        name = f"width {width}, {'aligned' if align else 'as they are'}"
        results[name] = found.audit.model_dump()
        mean, std = 100 * found.accuracy.mean(), 100 * found.accuracy.std()
        click.echo(f"{name}: {mean:.2f} ± {std:.2f} (published {published}); {seconds:.0f} processor seconds")
        show_audit(name, found.audit)
        write(out, results)


def show_audit(name: str, found: Audit) -> None:
    """Print an audit."""
    click.echo(f"\naudit of {name}: {100 * found.nearer:.0f} % nearer than training networks are to each other")
    columns = ("accuracy", "distance", "closest", "overlap", "highest_overlap", "diversity")
    click.echo(f"{'':<34}{'count':>6}" + "".join(f"{column:>16}" for column in columns))
    for row in found.rows:
        values = "".join(f"{getattr(row, column):>16.4f}" for column in columns)
        click.echo(f"{row.networks:<34}{row.count:>6}{values}")


def write(out: Path, values: dict[str, Any]) -> None:
    """Write all figures."""
    (out / "sampling.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
