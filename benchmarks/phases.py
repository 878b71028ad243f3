"""Print the processor seconds of each phase of `zootools represent` on a zoo.

    python benchmarks/phases.py zoos/tetris_seed --encoder

The phases are reading the zoo, and for each baseline, the best linear code and, with ``--encoder``, a trained encoder:
fitting it, mapping all checkpoints, and fitting and scoring the probes of all properties.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch

from representation.dataset import ZooDataset
from representation.evaluation.baselines import baselines
from representation.evaluation.scoring import Method, Scorer, Seconds, reconstruction_r2
from representation.recipes import Recipe, load_recipe
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
    methods = [partial(Method.fitted, each, weights, home.schema) for each in baselines(length, len(weights))]
    for fit in (*methods, partial(Method.of_linear_code, weights, home.schema, recipe)):
        if method := fit():
            phases[method.name] = scorer.score(method)
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
    seconds = time.process_time() - begun
    rebuilt = partial(reconstruction_r2, encoder, recipe=recipe) if recipe.loss.reconstructs else None
    return Method(recipe.loss.kind, encoder.embed, 0, None, rebuilt, seconds=seconds)


if __name__ == "__main__":
    main()
