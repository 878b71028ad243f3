"""Time the linear probes: every property of a large zoo, on random features.

    python benchmarks/probes.py --rows 50000 --features 800

The properties are those of a zoo of Unterthiner et al.: 20 numbers (epoch, losses, accuracies, gap, ten class-wise F
scores, hyper-parameters) and three categories (activation, optimizer, initialisation; 2, 3 and 5 classes). The probes
are fitted on 70 % of the rows, choose their penalties on 15 %, and predict all rows. The paper's training of the
softmax layers (Adam, batches of 10, 50 epochs, all layers at once) is timed separately.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from torch import Tensor

from representation.evaluation.probes import accuracy, fit_ridge, fit_softmax_adam, fit_softmax_lbfgs, kendall_tau, r2

NUMBERS = 20
CLASSES = (2, 3, 5)


@click.command()
@click.option("--rows", default=50_000, show_default=True, help="Checkpoints.")
@click.option("--features", default=800, show_default=True, help="Length of the representation.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; torch's default without it.")
@click.option("--no-adam", is_flag=True, help="Skip the paper's softmax layers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(rows: int, features: int, threads: int | None, no_adam: bool, as_json: bool) -> None:
    """Print wall-clock and processor seconds of each probe."""
    if threads:
        torch.set_num_threads(threads)
    x, numbers, labels = problem(rows, features)
    ends = (round(0.7 * rows), round(0.85 * rows))
    split = [slice(0, ends[0]), slice(*ends)]
    steps: dict[str, Callable[[], list[float]]] = {}
    for name, standardise in (("ridge, paper", False), ("ridge, standardised", True)):
        steps[name] = lambda standardise=standardise: regression(x, numbers, split, standardise)  # type: ignore[misc]
    steps["softmax, L-BFGS"] = lambda: classification(x, labels, split, paper=False)
    if not no_adam:
        steps["softmax, paper (Adam)"] = lambda: classification(x, labels, split, paper=True)
    result: dict[str, Any] = {"rows": rows, "features": features, "threads": torch.get_num_threads(), "probes": {}}
    for name, step in steps.items():
        wall, cpu = time.perf_counter(), time.process_time()
        scores = step()
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        result["probes"][name] = {**seconds, "mean_test_score": sum(scores) / len(scores)}
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{rows} rows x {features} features, {NUMBERS} numbers and {len(CLASSES)} categories", nl=False)
    click.echo(f"; {result['threads']} threads, peak memory {result['peak_memory_gb']:.1f} GB")
    for name, probe in result["probes"].items():
        click.echo(
            f"{name:<24} {probe['seconds']:7.1f} s  {probe['cpu_seconds']:7.1f} s of processors"
            f"  mean test score {probe['mean_test_score']:.3f}"
        )
    both = sum(probe["seconds"] for name, probe in result["probes"].items() if "Adam" not in name)
    click.echo(f"{'all but Adam':<24} {both:7.1f} s")


def problem(rows: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlated features in (-1, 1), like those of an encoder, and numbers and labels that depend on them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    latent = normal(rows, 64)
    x = (latent @ normal(64, features) / 8 + 0.3 * normal(rows, features)).tanh_()
    numbers = latent @ normal(64, NUMBERS) + 3 * normal(rows, NUMBERS)
    labels = [(latent @ normal(64, count) + 4 * normal(rows, count)).argmax(1) for count in CLASSES]
    return x, numbers.double(), torch.stack(labels, dim=1)


def regression(x: Tensor, y: Tensor, split: list[slice], standardise: bool) -> list[float]:
    """Fit all numbers, and return R2 on the remaining rows."""
    train, validation = ((x[part], y[part]) for part in split)
    predicted, rest = fit_ridge(train, validation, standardise=standardise)(x), slice(split[1].stop, None)
    for index in range(y.shape[1]):
        kendall_tau(y[rest, index], predicted[rest, index])
    return [r2(y[rest, index], predicted[rest, index]) for index in range(y.shape[1])]


def classification(x: Tensor, labels: Tensor, split: list[slice], paper: bool) -> list[float]:
    """Fit all categories, and return the accuracy on the remaining rows."""
    train, validation = ((x[part], labels[part]) for part in split)
    fitted = fit_softmax_adam(*train, CLASSES) if paper else fit_softmax_lbfgs(train, validation, CLASSES)
    guesses, rest = fitted.classes(x, len(CLASSES)), slice(split[1].stop, None)
    return [accuracy(labels[rest, index], guesses[rest, index]) for index in range(len(CLASSES))]


if __name__ == "__main__":
    main()
