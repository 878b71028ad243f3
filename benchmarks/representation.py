"""Measure the training of an encoder: checkpoints per second, the share of augmentation, and memory.

    python benchmarks/representation.py --seconds 20 --threads 1

Each row is measured in a separate process, one after the other, on random weights of the zoo's networks:

- paper's structure: the same network and losses with the structure of the paper's released code, written for this
  comparison: a data set that copies, permutes (by one of a list of prepared orders) and erases one checkpoint at a
  time, one Linear call per neuron, separate projections for query, key and value, norms made of single operations, a
  pass through the networks for each of the two views, and all cosines by broadcasting;
- ours, float32 and bfloat16: `representation.training.trainer.EncoderTrainer`.

The recipe determines network, batch size and losses of its rows; a recipe whose network is not an attention encoder has
no row with the paper's structure. The share of augmentation is the share of the time
in which the main process draws views.
"""

import copy
import itertools
import json
import math
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The folder of a script comes first on the path, where this file would hide the package of the same name: move it last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from representation.encoders.attention import projection_head
from representation.recipes import Attention, Augmentation, Recipe, load_recipe
from representation.training.trainer import EncoderTrainer
from zootools.architectures import Schema, build_schema
from zootools.spec import Cnn, Mlp

SCHEMAS = {
    "tetris": lambda: build_schema(Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), 4),
    "mnist": lambda: build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10),
    "mnist_hyp": lambda: build_schema(Cnn(name="cnn_unterthiner"), (1, 28, 28), 10),
}
ORDERS = 120


# --- the paper's structure --------------------------------------------------------------------------------------


class Checkpoints(Dataset[tuple[Tensor, Tensor]]):
    """A data set that returns two views of one checkpoint."""

    def __init__(self, weights: Tensor, schema: Schema, settings: Augmentation) -> None:
        self.weights, self.settings, self.seconds = weights, settings, 0.0
        orders = [
            {la.name: random.sample(range(la.outputs), la.outputs) for la in schema.layers[:-1]} for _ in range(ORDERS)
        ]
        self.orders = [torch.from_numpy(schema.permutation_index(order)) for order in orders]

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        begun = time.perf_counter()
        weights = copy.deepcopy(self.weights[index])
        first, second = (self.erase(weights[order]) for order in random.choices(self.orders, k=2))
        self.seconds += time.perf_counter() - begun
        return first, second

    def erase(self, weights: Tensor) -> Tensor:
        if torch.rand(1) >= self.settings.erase_probability:
            return weights
        for _ in range(10):
            length = int(len(weights) * random.uniform(self.settings.erase_lower, self.settings.erase_upper))
            start = int(torch.randint(0, len(weights), (1,)).item())
            if start + length < len(weights):
                weights[start : start + length] = torch.zeros_like(weights)[start : start + length]
                return weights
        return weights


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.shift


class PaperBlock(nn.Module):
    def __init__(self, settings: Attention) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.up, self.down = nn.Linear(width, settings.hidden), nn.Linear(settings.hidden, width)
        self.drop, self.drop_scores = nn.Dropout(settings.dropout), nn.Dropout(settings.attention_dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        query, key, value = (
            part(normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = self.drop_scores(torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), dim=3))
        x = x + self.drop(self.out((scores @ value).transpose(1, 2).contiguous().flatten(2)))
        return x + self.drop(self.down(self.drop(F.relu(self.up(self.norm2(x))))))


class PaperAutoencoder(nn.Module):
    def __init__(self, schema: Schema, settings: Attention) -> None:
        super().__init__()
        self.neurons = [torch.from_numpy(rows).tolist() for rows in schema.neuron_tokens().values()]
        widths, self.size = [len(rows[0]) for rows in self.neurons], schema.size
        tokens = sum(map(len, self.neurons))
        self.embed = nn.ModuleList(nn.Linear(size, settings.width) for size in widths)
        self.leave = nn.ModuleList(nn.Linear(settings.width, size) for size in widths)
        self.compression = nn.Parameter(torch.randn(1, 1, settings.width))
        self.positions_in = nn.Embedding(tokens + 1, settings.width)
        self.positions_out = nn.Embedding(tokens, settings.width)
        self.encoder = nn.ModuleList(PaperBlock(settings) for _ in range(settings.blocks))
        self.decoder = nn.ModuleList(PaperBlock(settings) for _ in range(settings.blocks))
        self.bottleneck = nn.Linear(settings.width, settings.latent)
        self.entrance = nn.Linear(settings.latent, tokens * settings.width)

    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        tokens = [embed(weights[:, n]) for embed, rows in zip(self.embed, self.neurons, strict=True) for n in rows]
        x = torch.cat([self.compression.repeat(len(weights), 1, 1), torch.stack(tokens, dim=1)], dim=1)
        x = x + self.positions_in(torch.arange(x.shape[1]))
        for block in self.encoder:
            x = block(x)
        z = torch.tanh(self.bottleneck(x[:, 0]))
        y = self.entrance(z).view(len(z), -1, x.shape[2])
        y = y + self.positions_out(torch.arange(y.shape[1]))
        for block in self.decoder:
            y = block(y)
        outputs, position = torch.zeros(len(z), self.size), 0
        for leave, rows in zip(self.leave, self.neurons, strict=True):
            for neuron in rows:
                outputs[:, neuron] = leave(y[:, position])
                position += 1
        return z, outputs


class PaperContrast(nn.Module):
    def __init__(self, pairs: int, temperature: float) -> None:
        super().__init__()
        self.pairs, self.temperature, self.cosine = pairs, temperature, nn.CosineSimilarity(dim=2)
        ones = torch.eye(2 * pairs)
        self.others = (ones + ones.roll(pairs, 0)) == 0

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        views = torch.cat([first, second])
        similarity = self.cosine(views.unsqueeze(1), views.unsqueeze(0)) / self.temperature
        positive = torch.cat([torch.diag(similarity, self.pairs), torch.diag(similarity, -self.pairs)])
        negative = similarity[self.others].reshape(len(views), -1)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(views), dtype=torch.long), reduction="sum") / len(views)


def papers_structure(schema: Schema, recipe: Recipe, weights: Tensor) -> Iterator[float]:
    """Train for ever; after each step yield the seconds spent on augmentation so far."""
    assert isinstance(recipe.encoder, Attention)
    batch = recipe.training.batch_size
    data = Checkpoints(weights, schema, recipe.augmentation)
    model, head = PaperAutoencoder(schema, recipe.encoder), projection_head(recipe.encoder.latent, recipe.head)
    contrast, beta = PaperContrast(batch, recipe.loss.temperature), recipe.loss.beta
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=recipe.training.lr, weight_decay=1e-9)
    while True:
        for first, second in DataLoader(data, batch, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            (z_first, out_first), (z_second, out_second) = model(first), model(second)
            error = F.mse_loss(torch.cat([out_first, out_second]), torch.cat([first, second]))
            loss = beta * error + (1 - beta) * contrast(head(z_first), head(z_second))
            loss.backward()
            optimizer.step()
            loss.item()
            yield data.seconds


# --- ours -------------------------------------------------------------------------------------------------------


def ours(schema: Schema, recipe: Recipe, weights: Tensor) -> Iterator[float]:
    """Train for ever; after each step yield the seconds spent on augmentation so far."""
    trainer = EncoderTrainer(schema, weights, weights[:1], recipe, 0, torch.device("cpu"))
    seconds, views = 0.0, trainer.augmenter.views

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal seconds
        begun = time.perf_counter()
        result = views(*args, **kwargs)
        seconds += time.perf_counter() - begun
        return result

    trainer.augmenter.views = timed  # type: ignore[method-assign]
    while True:
        trainer.train_epoch()  # one step, because there is one batch
        yield seconds


# --- measuring --------------------------------------------------------------------------------------------------

WAYS = {"paper's structure, fp32": papers_structure, "ours, fp32": ours, "ours, bf16": ours}


def measure(way: str, zoo: str, recipe_name: str, seconds: float, threads: int) -> dict[str, float]:
    """Return the measurements of one way; runs in a separate process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    schema = SCHEMAS[zoo]()
    recipe = load_recipe(recipe_name, [f"training.precision={way[-4:]}", "training.schedule=constant"])
    weights = torch.rand(recipe.training.batch_size, schema.size)
    steps = WAYS[way](schema, recipe, weights)
    begun_augmenting = next(steps)  # warm-up
    begun, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - begun < seconds:
        augmenting = next(steps)
        count += 1
    elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "samples_per_second": count * len(weights) / elapsed,
        "samples_per_cpu_second": count * len(weights) / cpu,
        "milliseconds_per_step": 1000 * elapsed / count,
        "augmentation_milliseconds": 1000 * (augmenting - begun_augmenting) / count,
        "augmentation_share": (augmenting - begun_augmenting) / elapsed,
        "memory_mb": memory / 1024,
    }


def trainer_of_default(schema: Schema) -> tuple[EncoderTrainer, Tensor]:
    """Return a trainer of the recipe `default`, and a batch of random weights."""
    recipe = load_recipe("default", ["training.schedule=constant"])
    weights = torch.rand(recipe.training.batch_size, schema.size)
    return EncoderTrainer(schema, weights, weights[:1], recipe, 0, torch.device("cpu")), weights


def phases_of_a_step(schema: Schema, seconds: float) -> dict[str, float]:
    """Return the least processor milliseconds of each phase of a step of the recipe `default`."""
    trainer, weights = trainer_of_default(schema)
    generator, found, begun = torch.Generator().manual_seed(0), list[dict[str, float]](), time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begun < seconds:
        clocks = [time.process_time()]
        trainer.augmenter.views(weights, generator)
        clocks.append(time.process_time())
        terms = trainer.loss(weights, generator)  # draws views again
        clocks.append(time.process_time())
        trainer.optimizer.zero_grad()
        terms.total.backward()
        clocks.append(time.process_time())
        trainer.optimizer.step()
        clocks.append(time.process_time())
        views, loss, backward, optimizer = (1000 * (end - start) for start, end in itertools.pairwise(clocks))
        found.append({"views": views, "forward": loss - views, "backward": backward, "optimizer": optimizer})
    return {phase: min(step[phase] for step in found) for phase in found[0]}


def steps_on_threads(schema: Schema, seconds: float) -> tuple[float, float]:
    """Return the least milliseconds of a step of the recipe `default` on one thread and on two, taken in turn."""
    best = {1: math.inf, 2: math.inf}
    trainers = {}
    for threads in best:
        torch.set_num_threads(threads)
        trainers[threads] = trainer_of_default(schema)
    torch.set_num_threads(1)  # no single operation is divided, as in `EncoderTrainer.train_epoch`
    generator, begun, rounds = torch.Generator().manual_seed(0), time.perf_counter(), 0
    while rounds < 4 or time.perf_counter() - begun < seconds:
        for threads, (trainer, weights) in trainers.items():
            start = time.perf_counter()
            trainer.optimizer.zero_grad()
            trainer.loss(weights, generator).total.backward()
            trainer.optimizer.step()
            best[threads] = min(best[threads], 1000 * (time.perf_counter() - start)) if rounds else math.inf
        rounds += 1
    return best[1], best[2]


@click.command()
@click.option("--phases", is_flag=True, help="Print the processor time of the phases of a step of `default` instead.")
@click.option("--seconds", default=20.0, show_default=True, help="Least time of one row.")
@click.option("--threads", default=1, show_default=True)
@click.option("--zoo", type=click.Choice(list(SCHEMAS)), default="tetris", show_default=True)
@click.option("--recipe", "recipes", multiple=True, help="Default: a paper_code recipe, and default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(phases: bool, seconds: float, threads: int, zoo: str, recipes: tuple[str, ...], as_json: bool) -> None:
    """Print the speed of training an encoder as a table."""
    if phases:
        torch.set_num_threads(threads)
        click.echo("| network | views ms | forward ms | backward ms | optimizer ms | share of views |")
        click.echo("|---|--:|--:|--:|--:|--:|")
        for name, schema in SCHEMAS.items():
            times = phases_of_a_step(schema(), seconds)
            cells = [f"{value:.1f}" for value in times.values()] + [f"{times['views'] / sum(times.values()):.1%}"]
            click.echo(f"| {name} | {' | '.join(cells)} |")
        click.echo("\n| network | ms of a step | on two threads | times as fast |")
        click.echo("|---|--:|--:|--:|")
        for name, schema in SCHEMAS.items():
            one, two = steps_on_threads(schema(), seconds)
            click.echo(f"| {name} | {one:.0f} | {two:.0f} | {one / two:.2f}x |")
        return
    spawn, rows = multiprocessing.get_context("spawn"), []
    for recipe in recipes or (f"{zoo.removesuffix('_hyp')}_seed_paper_code", "default"):
        attends = isinstance(load_recipe(recipe).encoder, Attention)  # the paper has no other structure
        for way in WAYS if attends else list(WAYS)[1:]:
            click.echo(f"{recipe}: {way}", err=True)
            with spawn.Pool(1) as pool:
                rows.append({"recipe": recipe, "way": way, **pool.apply(measure, (way, zoo, recipe, seconds, threads))})
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "threads": threads, "zoo": zoo, "rows": rows}, indent=2))
        return
    click.echo(f"Training on the weights of {zoo} networks: torch {torch.__version__}, {threads} thread(s)\n")
    click.echo("| recipe | way | samples/s | to the first row | ms per step | augmentation | memory MB |")
    click.echo("|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        ratio = row["samples_per_second"] / rows[0]["samples_per_second"]
        augmentation = f"{row['augmentation_milliseconds']:.1f} ms, {row['augmentation_share']:.1%}"
        click.echo(
            f"| {row['recipe']} | {row['way']} | {row['samples_per_second']:,.0f} | {ratio:.2f}x "
            f"| {row['milliseconds_per_step']:,.0f} | {augmentation} | {row['memory_mb']:,.0f} |"
        )


if __name__ == "__main__":
    main()
