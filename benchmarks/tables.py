"""The paper's ablations on TETRIS-SEED: table 1 (losses) and table 3 (augmentations).

    python benchmarks/tables.py --table 1 --budget 20 zoos/tetris_seed
    python benchmarks/tables.py --table 3 --full zoos/tetris_seed

The budget, in minutes of training, is divided evenly among the cells. Within it a small network is trained on every
fifth epoch of the zoo, for as many epochs as fit; ``--full`` trains the network of the paper's code on everything,
for as long as that did. Beside each figure stands the paper's, all in percent: R2 on the test split.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

# A script's folder comes first on the path, where representation.py would hide the package; now it comes last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from torch import Tensor

from representation.checkpoints import Checkpoints
from representation.evaluate import reconstruction_r2
from representation.probes import fit_ridge, r2
from representation.recipes import Recipe, load_recipe
from representation.train import train_encoder, training_data
from representation.trainer import Trainer
from zootools.zoo import Zoo, open_zoo

REDUCED = ["encoder.width=64", "encoder.hidden=128", "training.batch_size=500", "epochs.every=5"]
TARGETS = {
    "Eph": "epoch",
    "Acc": "test_accuracy",
    "Ggap": "generalization_gap",
    **{f"FC{label}": f"test_f1_{label}" for label in range(4)},
}
LOSSES = ("Ec", "ED", "EcD", "Ec+D")
AUGMENTATIONS = ("none", "P", "E", "N", "PE", "PN", "EN", "PEN")
NOISE = 0.05
"""Standard deviation of the noise in table 3, as in the paper."""

PAPER: dict[str, dict[str, list[float | None]]] = {
    "1": {  # Rec, Eph, Acc, FC0, FC1, FC2, FC3; the generalisation gap is table 12's
        "Ec": [None, 96.7, 90.8, 82.5, 67.7, 72.0, 74.4, 85.8],
        "ED": [96.1, 88.3, 68.9, 69.9, 47.8, 57.2, 33.0, 58.1],
        "EcD": [84.1, 97.0, 90.2, 81.9, 70.7, 75.9, 69.4, 86.6],
        "Ec+D": [95.9, 94.0, 69.9, None, 48.9, 58.1, 32.5, 58.8],
    },
    "3": {
        "ED": [88.1, 95.5, 89.8, 88.8, 96.1, 95.6, 89.7, 96.1],
        "EcD": [49.2, 72.9, 67.3, 59.4, 84.1, 81.9, 65.4, 84.1],
        "Ec+D": [86.3, 95.6, 88.5, 87.6, 95.9, 95.8, 89.0, 96.0],
    },
}
COLUMNS = {"1": ["Rec", *TARGETS], "3": list(AUGMENTATIONS)}


def augmented(letters: str) -> list[str]:
    """Return the overrides of a column of table 3."""
    settings = {
        "permute": "true" if "P" in letters else "false",
        "erase_probability": "0.5" if "E" in letters else "0.0",
        "noise": str(NOISE) if "N" in letters and letters != "none" else "0.0",
    }
    return [f"augmentation.{key}={value}" for key, value in settings.items()]


def cells(table: str) -> dict[tuple[str, str], list[str]]:
    """Return for each training of a table (loss, augmentations) what it changes of the recipe."""
    if table == "1":
        return {(loss, "PE"): [f"loss.kind={loss}"] for loss in LOSSES}
    return {
        (loss, letters): [f"loss.kind={loss}", *augmented(letters)] for loss in PAPER["3"] for letters in AUGMENTATIONS
    }


def seconds_per_epoch(zoo: Zoo, recipe: Recipe) -> float:
    """Measure how long one epoch takes here, over a few steps."""
    train, validation = (part.weights() for part in training_data(zoo, recipe).values())
    few = train[: 4 * recipe.training.batch_size]
    trainer = Trainer(zoo.schema, few, validation[:1000], recipe, 0, torch.device("cpu"))
    trainer.train_epoch()
    begun = time.perf_counter()
    trainer.train_epoch()
    return (time.perf_counter() - begun) * len(train) / len(few) * 1.1  # and a tenth for the validation


def score(zoo: Zoo, recipe: Recipe, out: Path, seed: int) -> dict[str, float]:
    """Train an encoder and return what a linear probe finds in it on the test split, in percent."""
    encoder = train_encoder(zoo, recipe, out, seed)
    parts = Checkpoints.of(zoo, recipe).parts
    features = {split: encoder.embed(part.weights) for split, part in parts.items()}
    names = [name for name in TARGETS.values() if name in parts["train"].targets]

    def values(split: str) -> Tensor:
        return torch.stack([parts[split].targets[name].values for name in names], dim=1)

    probe = fit_ridge((features["train"], values("train")), (features["validation"], values("validation")))
    predicted, truth = probe(features["test"]), values("test")
    found = {name: 100 * r2(truth[:, i], predicted[:, i]) for i, name in enumerate(names)}
    scores = {column: found[name] for column, name in TARGETS.items() if name in found}
    if recipe.loss.kind != "Ec":
        scores["Rec"] = 100 * reconstruction_r2(encoder, parts["test"].weights, recipe)
    return scores


def layout(table: str, results: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    """Return the lines of the table: ours, and the paper's figure in brackets."""
    lines = ["| loss | " + " | ".join(COLUMNS[table]) + " |", "|---|" + "--:|" * len(COLUMNS[table])]
    for loss, published in PAPER[table].items():
        row = []
        for column, figure in zip(COLUMNS[table], published, strict=True):
            scores = results[loss, "PE"] if table == "1" else results[loss, column]
            ours = scores.get(column if table == "1" else "Rec")
            row.append(f"{'-' if ours is None else f'{ours:.1f}'} ({'-' if figure is None else figure})")
        lines.append(f"| {loss} | " + " | ".join(row) + " |")
    return lines


@click.command()
@click.argument("zoo", type=click.Path(exists=True, path_type=Path))
@click.option("--table", type=click.Choice(list(PAPER)), required=True)
@click.option("--budget", default=20.0, show_default=True, help="Minutes of training, of all cells together.")
@click.option("--full", is_flag=True, help="The network and the epochs of the paper's code, whatever time it takes.")
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the encoders here, and resume from here.")
@click.option("--json", "as_json", is_flag=True)
def main(
    zoo: Path,
    table: str,
    budget: float,
    full: bool,
    seed: int,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Train an encoder for every cell of a table of the paper, and print what they find beside the paper's figures."""
    opened, begun = open_zoo(zoo), time.monotonic()
    changes = {cell: [*([] if full else REDUCED), *own, *overrides] for cell, own in cells(table).items()}
    name = "tetris_seed_paper_code" if full else "default"
    epochs = load_recipe(name).training.epochs
    if not full:
        needed = seconds_per_epoch(opened, load_recipe(name, next(iter(changes.values()))))
        epochs = max(1, int(budget * 60 / len(changes) / needed))
    keep = out or Path(tempfile.mkdtemp())
    results = {}
    for cell, own in changes.items():
        recipe = load_recipe(name, [*own, f"training.epochs={epochs}"])
        click.echo(f"{cell[0]}, augmentations {cell[1]}: {epochs} epochs", err=True)
        results[cell] = score(opened, recipe, keep / "_".join(cell), seed)
    if out is None:
        shutil.rmtree(keep)
    about = {
        "zoo": opened.spec.name,
        "recipe": " ".join([name, *([] if full else REDUCED), *overrides]),
        "epochs": epochs,
        "checkpoints": len(training_data(opened, recipe)["train"]),
        "seed": seed,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "cpu_minutes": round(time.process_time() / 60, 1),
    }
    if as_json:
        rows = [{"loss": loss, "augmentations": letters, **found} for (loss, letters), found in results.items()]
        click.echo(json.dumps({"about": about, "rows": rows}, indent=2))
        return
    click.echo(f"Table {table}, R2 on the test split in %, the paper's in brackets.")
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    click.echo("\n".join(layout(table, results)))


if __name__ == "__main__":
    main()
