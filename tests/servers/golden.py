"""Writes the golden zoos in tests/data, which every later version must read (row T6).

``python tests/servers/golden.py`` was run once, with version 0.1.0. A later version adds zoos of its own and leaves
these.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from zootools import build, open_zoo
from zootools.bundled import bundled_specs
from zootools.spec import load_spec, parse_spec
from zootools.spec.model_configs import expand

DATA = Path(__file__).parents[1] / "data"

MLP: dict[str, Any] = {
    "name": "golden_mlp",
    "license": "mit",
    "images": {"name": "tetris", "train": 24, "test": 20, "noise_train": 0.2, "noise_test": 0.8},
    "architecture": {"name": "mlp", "hidden": [4]},
    "grid": {
        "activation": ["relu"],
        "init": ["uniform"],
        "optimizer": ["sgd"],
        "lr": [0.01, 1.0],
        "weight_decay": [0.0, 100.0],
    },
    "seeds": {"range": [1, 2]},
    "training": {"epochs": 3, "batch_size": 4},
}
CNN = MLP | {
    "name": "golden_cnn",
    "images": {"name": "digits", "train": 12, "test": 10, "size": 28},
    "architecture": {"name": "cnn_small"},
    "grid": {
        "activation": ["tanh"],
        "init": ["kaiming_uniform"],
        "optimizer": ["adam"],
        "lr": [0.01],
        "dropout": [0.1],
    },
    "training": {"epochs": 1, "batch_size": 4},
}
GROWN = MLP | {
    "name": "golden_grown",
    "grid": {"activation": ["silu"], "init": ["normal"], "optimizer": ["rmsprop"], "lr": [0.01]},
}


def describe(folder: Path) -> dict[str, Any]:
    """Return what a zoo holds, in a few numbers per checkpoint."""
    zoo = open_zoo(folder, include_diverged=True)
    return {
        "counts": zoo.counts.model_dump(),
        "models": zoo.models,
        "sums": [float(f"{value:.9e}") for value in zoo.weights().double().sum(dim=1).tolist()],
        "test_accuracy": zoo.metadata["test_accuracy"].to_pylist(),
    }


def main() -> None:
    """Build the zoos anew, and write down what they hold."""
    expected: dict[str, Any] = {}
    for values in (MLP, CNN, GROWN):
        out = DATA / values["name"]
        shutil.rmtree(out, ignore_errors=True)
        build(parse_spec(values, "golden"), out, quiet=True, backend="torch")
        if values is GROWN:
            build(parse_spec(values | {"seeds": {"range": [1, 4]}}, "golden"), out, quiet=True, backend="torch")
        (out / "build.json").unlink()
        expected[out.name] = describe(out)
    specs = {name: load_spec(path) for name, path in sorted(bundled_specs().items())}
    small = {name: spec for name, spec in specs.items() if spec.model_count < 5000}  # the others are of the same kinds
    expected["ids"] = {name: [model.model_id for model in expand(spec)[:3]] for name, spec in small.items()}
    (DATA / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
