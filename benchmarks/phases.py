"""Print the processor seconds of each phase of `zootools represent` on a zoo.

    python benchmarks/phases.py zoos/tetris_seed --encoder

The phases are reading the zoo, and for each baseline, the best linear code and, with ``--encoder``, a trained encoder:
fitting it, mapping all checkpoints, and fitting and scoring the probes of all properties.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch

from representation.dataset import ZooDataset
from representation.evaluation.baselines import baselines
from representation.evaluation.scoring import LINEAR_CODE, Method, Scorer, Seconds
from representation.recipes import Recipe, load_recipe
from representation.training.start import best_linear_code
from representation.training.train import train_encoder
from zootools import Zoo, open_zoo


@click.command()
@click.argument("zoo")
@click.option("--recipe", "recipe_name", default="default", show_default=True)
@click.option("--encoder", is_flag=True, help="Also train the recipe's encoder, on the CPU.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(zoo: str, recipe_name: str, encoder: bool, threads: int, as_json: bool) -> None:
    """Print the processor seconds of each phase as a table."""
    torch.set_num_threads(threads)
    begun = time.process_time()
    opened, recipe = open_zoo(zoo), load_recipe(recipe_name)
    home = ZooDataset.of(opened, recipe)
    targets, excluded = home.choose()
    weights, length = home.splits["train"].weights, recipe.sized(home.schema.size).encoder.length
    phases = {"reading": Seconds(time.process_time() - begun)}
    scorer = Scorer(home, [], targets, excluded)
    for baseline in baselines(length, len(weights)):
        phases[baseline.name] = scorer.score(Method.fitted(baseline, weights, home.schema))
    begun = time.process_time()
    if code := best_linear_code(home.schema, recipe, weights):
        seconds = time.process_time() - begun
        phases[LINEAR_CODE] = scorer.score(Method.of_linear_code(code, home.schema, recipe, len(weights), seconds))
    if encoder:
        phases[recipe.loss.kind] = scorer.score(trained(opened, recipe))
    total = sum(map(sum, phases.values()))
    if as_json:
        click.echo(json.dumps({"phases": {name: part._asdict() for name, part in phases.items()}, "total": total}))
        return
    rows = sum(len(part) for part in home.splits.values())
    click.echo(
        f"{home.name}: {rows:,} checkpoints, {len(targets)} properties, {threads} thread(s), processor seconds\n"
    )
    click.echo("| | fit | embedding | probes |\n|---|--:|--:|--:|")
    for name, part in phases.items():
        click.echo(f"| {name} | {part.fit:.1f} | {part.embed:.1f} | {part.probe:.1f} |")
    click.echo(f"| all | {total:.1f} | | |")


def trained(zoo: Zoo, recipe: Recipe) -> Method:
    """Train the encoder of a recipe."""
    begun = time.process_time()
    with TemporaryDirectory() as folder:
        encoder = train_encoder(zoo, recipe, Path(folder) / "encoder", quiet=True, device="cpu")
    return Method.of_encoder(encoder, recipe, seconds=time.process_time() - begun)


if __name__ == "__main__":
    main()
