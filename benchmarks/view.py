"""Measure the interactive page of a large zoo, in the system's Chromium with WebGL computed on the processor.

    python benchmarks/view.py [--checkpoints 50000] [--chromium /usr/bin/chromium]

Prints the size of the page, the time to the first picture, and the time of a change of a filter (until plotly has
drawn).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright

from zootools import open_zoo
from zootools.architectures import build_schema
from zootools.plots import Portrait
from zootools.plots.page import page
from zootools.spec import Mlp

EPOCHS = 25
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


def portrait(checkpoints: int, folder: Path) -> Portrait:
    """Return a synthetic population: models that walk from the centre outwards, with the properties of a zoo."""
    random, schema = np.random.default_rng(0), build_schema(Mlp(name="mlp", hidden=(2,)), (1, 1, 2), 2)
    model = np.arange(checkpoints) // EPOCHS
    epoch = np.arange(checkpoints) % EPOCHS
    points = np.random.default_rng(1).normal(size=(model.max() + 1, 2))[model] * (1 + epoch[:, None])
    weights = np.zeros((checkpoints, schema.size), np.float32)
    columns = {
        "model_id": [f"{number:016x}" for number in model],
        "epoch": epoch,
        "activation": np.array(["gelu", "relu", "sigmoid", "tanh"])[model % 4],
        "init": np.array(["kaiming", "normal", "uniform"])[model % 3],
        "lr": np.array([1e-4, 1e-3, 1e-2])[model % 3],
        "seed": model,
        **{name: random.random(checkpoints) for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")},
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), schema.size),
    }
    pq.write_table(pa.table(columns), folder / "population.parquet")
    zoo = open_zoo(folder / "population.parquet", schema=schema)
    return Portrait.of(zoo, checkpoints, whole_models=True).with_plane("W", points, "a walk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=50_000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        file = Path(temporary) / "view.html"
        file.write_bytes(page(portrait(arguments.checkpoints, Path(temporary))))
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        first, changes = [], []
        for _ in range(3):
            shown = browser.new_page(viewport={"width": 1400, "height": 850})
            shown.goto(file.as_uri(), timeout=120_000)
            shown.wait_for_selector("body[data-ready]", timeout=120_000)
            first.append(float(shown.evaluate("document.body.dataset.ready")))
            for number in range(6):
                shown.locator("#filters input[type=checkbox]").nth(number % 3).click()
                shown.wait_for_timeout(500)
                changes.append(float(shown.evaluate("document.body.dataset.drawn")))
            shown.close()
        browser.close()
        result = {
            "checkpoints": arguments.checkpoints,
            "megabytes": round(file.stat().st_size / 1e6, 1),
            "first_picture_seconds": round(median(first) / 1000, 2),
            "filter_change_milliseconds": {"median": round(median(changes)), "slowest": round(max(changes))},
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
