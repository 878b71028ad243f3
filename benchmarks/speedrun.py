"""Measure the processor seconds until an encoder reaches the paper's cells on TETRIS-SEED, on one core.

    zootools build tetris_seed
    python benchmarks/speedrun.py zoos/tetris_seed --seeds 5
    python benchmarks/speedrun.py zoos/tetris_seed --recipe tetris_seed_paper_code --budget 300 --seeds 1

Each training is a separate process with one thread. The clock is its processor time, and counts everything between the
weights in memory and the encoder on the disk: preparation, epochs, validation, and writing. Reading the zoo and the
probes are outside of it.

- A recipe with the schedule ``one_cycle`` is trained to its end, because its length decides the learning rate of every
  step; ``--ladder 2,4,8`` tries such recipes with these numbers of epochs, and ends with the first whose every seed
  reaches the cells.
- Other recipes are probed whenever their time has grown by a tenth, and end when the cells are reached, or after
  ``--budget`` seconds.

Encoders and lengths are chosen by the validation split; the figures are of the test split. ``--record`` appends the
measurement to docs/speedrun.json and writes docs/speedrun.md from that file.
"""

import datetime
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# The folder of a script comes first on the path, where representation.py would hide the package: move it last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from pydantic import ValidationError

from representation.dataset import ZooDataset
from representation.encoders.encoder import Encoder
from representation.evaluation.scoring import Method, Scorer, permuted_views
from representation.paper import published
from representation.recipes import Epochs, Recipe, load_recipe
from representation.reproduction.job_costs import training_steps
from representation.reproduction.report import TETRIS
from representation.reproduction.work import machine
from representation.training.start import best_linear_code
from representation.training.train import Weights, train_epochs
from zootools import open_zoo
from zootools.errors import DamagedZooError, ZooError
from zootools.filesystem.files import write_durably
from zootools.hashing import pretty_json
from zootools.spec.sections import Section

DOCS = Path(__file__).parents[1] / "docs"
RECIPES = ("default", "reconstruction", "tetris_seed_paper_code", "tetris_seed_paper_code loss.kind=ED")
CELLS = {"reconstruction": "Rec", "epoch": "Eph", "test_accuracy": "Acc", "generalization_gap": "GGap"}
"""The cells and their names in the paper."""
MARK = "<!-- Made by `benchmarks/speedrun.py --record` from speedrun.json; do not edit. -->"
Values = dict[str, float]
"""R2 of the cells, as fractions."""


class Run(Section):
    """One training."""

    recipe: str
    """Name and overrides."""
    loss: str
    seed: int
    epochs: int
    """Number of epochs that were trained."""
    steps: int
    seconds: float
    """Processor seconds."""
    whole: bool
    """Whether the recipe's training ended; otherwise it was stopped when the cells were reached, or by the budget."""
    bound: float
    """R2 of the best linear code of the same length on the same permuted test networks."""
    validation: Values
    test: Values

    @property
    def goals(self) -> Values:
        """The cells to reach: the paper's; of ED's reconstruction no more than the best linear code has."""
        return goals(self.loss, self.bound)

    def reaches(self, split: Values) -> bool:
        """Return whether every cell is reached in the values of a split."""
        return all(split[cell] >= goal for cell, goal in self.goals.items())


class Measurement(Section):
    """The trainings of one call."""

    date: str
    commit: str
    machine: str
    torch: str
    zoo: str
    """Name of the specification."""
    zoo_sha256: str
    """Hash of the zoo's manifest."""
    models: int
    budget: float
    """Processor seconds after which trainings of unlimited length were stopped."""
    runs: tuple[Run, ...]


class Record(Section):
    """The content of docs/speedrun.json, the oldest measurement first."""

    measurements: tuple[Measurement, ...] = ()


def goals(loss: str, bound: float) -> Values:
    """Return the cells that a loss has to reach, as fractions."""
    wanted = CELLS if loss != "ED" else ("reconstruction",)
    found = {cell: published("tetris_seed", "tetris_seed", loss, cell, "r2") for cell in wanted}
    values = {cell: value for cell, value in found.items() if value is not None}
    if loss == "ED":
        values["reconstruction"] = min(values["reconstruction"], bound)
    return values


# --- measuring --------------------------------------------------------------------------------------------------


class Judge:
    """The cells of an encoder on every checkpoint of a zoo but the initialisations, whatever it was trained on."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe = recipe.model_copy(update={"epochs": Epochs()})
        self.home = ZooDataset.of(open_zoo(folder), self.recipe)

    def bound(self) -> float:
        """Return the R2 of the best linear code of the recipe's length on permuted test networks."""
        schema, splits = self.home.schema, self.home.splits
        code = best_linear_code(schema, self.recipe, splits["train"].weights)
        if code is None:
            raise click.ClickException("the best linear code of networks of this size takes too long")
        return code.r2(permuted_views(schema, splits["test"].weights, self.recipe))

    def __call__(self, encoder: Encoder) -> tuple[Values, Values]:
        """Return the values on the validation and on the test split."""
        excluded: dict[str, str] = {}
        scorer = Scorer(self.home, [], [cell for cell in CELLS if cell != "reconstruction"], excluded, ("paper",))
        scorer.score(Method.of_encoder(encoder, self.recipe))
        if excluded:
            raise click.ClickException(f"the encoder cannot be scored: {excluded}")
        scores = [score for score in scorer.scores if score.metric == "r2" and score.value is not None]
        validation, test = (
            {score.target: float(score.value or 0) for score in scores if score.split == split}
            for split in ("validation", "test")
        )
        return validation, test


def measure(folder: Path, words: str, seed: int, budget: float) -> Run:
    """Train one encoder and return its time and cells; runs in a separate process."""
    torch.set_num_threads(1)
    name, *overrides = words.split(" ")
    recipe = load_recipe(name, overrides)
    weights, judge = Weights.of(open_zoo(folder), recipe, quiet=True), Judge(folder, recipe)
    bound, seconds, looked, epochs = judge.bound(), 0.0, 0.0, 0

    def run(encoder: Path, whole: bool) -> Run:
        validation, test = judge(Encoder.from_pretrained(encoder))
        return Run(
            recipe=words,
            loss=recipe.loss.kind,
            seed=seed,
            epochs=epochs,
            steps=training_steps(recipe, len(weights.train)) * epochs // recipe.training.epochs,
            seconds=round(seconds, 2),
            whole=whole,
            bound=bound,
            validation=validation,
            test=test,
        )

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "encoder"
        training = train_epochs(weights, recipe, out, seed, quiet=True, device="cpu")
        while True:
            begun = time.process_time()
            epoch = next(training, None)
            seconds += time.process_time() - begun
            if epoch is None:
                return run(out, whole=True)
            epochs = epoch.number
            if recipe.training.schedule == "one_cycle" or (seconds < 1.1 * looked and seconds < budget):
                continue
            looked, result = seconds, run(out, whole=False)
            if result.reaches(result.validation) or seconds >= budget:
                training.close()
                return result


def trainings(recipes: Sequence[str], ladder: Sequence[int]) -> Iterator[list[str]]:
    """Yield for each recipe the lengths to try, shortest first."""
    for words in recipes:
        name, *overrides = words.split(" ")
        whole = load_recipe(name, overrides).training.schedule == "one_cycle"
        yield [f"{words} training.epochs={epochs}" for epochs in sorted(ladder)] if whole and ladder else [words]


def measure_all(folder: Path, recipes: Sequence[str], ladder: Sequence[int], seeds: int, budget: float) -> list[Run]:
    """Measure every recipe with every seed, one after the other, and show each result."""
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn, runs = multiprocessing.get_context("spawn"), list[Run]()
    for lengths in trainings(recipes, ladder):
        for words in lengths:
            here = list[Run]()
            for seed in range(seeds):
                with spawn.Pool(1) as pool:
                    here.append(pool.apply(measure, (folder, words, seed, budget)))
                click.echo(" ".join(row(here[-1], ("validation",)).values()), err=True)
            runs += here
            if all(run.reaches(run.validation) for run in here):
                break
    return runs


# --- the record and its page ------------------------------------------------------------------------------------

Row = dict[str, str]


def row(run: Run, more: Sequence[str] = ()) -> Row:
    """Return a training as a row of a table; ``more`` may add the values of the validation split."""
    shown: Row = {"recipe": run.recipe, "seed": str(run.seed), "epochs": str(run.epochs), "steps": f"{run.steps:,}"}
    shown["seconds"] = f"{run.seconds:.1f}"
    for cell, name in CELLS.items():
        shown[name] = percent(run.test.get(cell))
        if "validation" in more:
            shown[name] += f" ({percent(run.validation.get(cell))})"
    return {**shown, "linear code": percent(run.bound), "reached": verdict([run])}


def verdict(runs: Sequence[Run]) -> str:
    """Return how many of some trainings reach the cells, and when the others were stopped."""
    reached = sum(run.reaches(run.test) for run in runs)
    if reached == len(runs):
        return "yes" if len(runs) == 1 else "on every seed"
    stopped = "" if runs[0].whole else f" after {max(run.seconds for run in runs):.0f} s"
    return f"not{stopped}" if not reached else f"on {reached} of {len(runs)} seeds"


def summary(measurement: Measurement, runs: Sequence[Run]) -> Row:
    """Return the trainings of one recipe as a row: means, and the range over seeds."""
    cells = {name: spread([100 * run.test[cell] for run in runs if cell in run.test]) for cell, name in CELLS.items()}
    return {
        "date": measurement.date,
        "commit": measurement.commit,
        "recipe": runs[0].recipe,
        "seeds": str(len(runs)),
        "steps": f"{max(run.steps for run in runs):,}",
        "processor seconds": spread([run.seconds for run in runs]),
        **cells,
        "linear code": percent(runs[0].bound),
        "reached": verdict(runs),
    }


def spread(values: Sequence[float]) -> str:
    """Return the mean, and with several values the least and the largest."""
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def percent(value: float | None) -> str:
    """Return a fraction in percent, with one digit."""
    return "-" if value is None else f"{100 * value:.1f}"


def table(rows: Iterable[Row]) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return lines + ["| " + " | ".join(line.values()) + " |" for line in rows]


def by_recipe(measurement: Measurement) -> list[list[Run]]:
    """Return the trainings of each recipe."""
    names = dict.fromkeys(run.recipe for run in measurement.runs)
    return [[run for run in measurement.runs if run.recipe == name] for name in names]


ABOUT = """\
Processor seconds until an encoder has the cells of the paper's own network on TETRIS-SEED (its Tables 1 and 5), on one
core. Every line is printed by

    python benchmarks/speedrun.py zoos/tetris_seed --record

with other options where the recipe or the number of seeds differs; the seeds are of the encoder, the zoo is the same.
The clock counts everything between the weights in memory and the encoder on the disk, and neither the reading of the
zoo nor the probes. The kept epoch is chosen on the validation split; all figures are R2 in % on the test split.

"Linear code" is the R2 of the best linear code of the same length (PCA) on the same permuted test networks.
"""


def render(record: Record) -> str:
    """Return the page of a record."""
    wanted = {"EcD": goals("EcD", 1.0), "ED": goals("ED", 1.0)}
    rows: list[Row] = [
        {"loss": loss, **{name: f">= {percent(cells[cell])}" if cell in cells else "-" for cell, name in CELLS.items()}}
        for loss, cells in wanted.items()
    ]
    lines = [MARK, "", "# Speedrun", "", *ABOUT.split("\n"), TETRIS, "", "## The cells to reach", "", *table(rows), ""]
    lines += ["For ED the measured linear code counts where it is below the paper's value.", ""]
    newest = record.measurements[::-1]
    if not newest:
        return "\n".join([*lines, "Nothing has been measured yet.", ""])
    lines += ["## Records", "", "The newest first; in parentheses the range over seeds.", ""]
    lines += [*table(summary(one, runs) for one in newest for runs in by_recipe(one)), ""]
    lines += ["## Machines and zoos", ""]
    facts = [
        {
            "date": one.date,
            "commit": one.commit,
            "machine": one.machine,
            "torch": one.torch,
            "zoo": f"{one.zoo}, {one.models:,} models, manifest {one.zoo_sha256[:8]}",
        }
        for one in newest
    ]
    lines += [*table(facts), "", "## Every training", ""]
    lines += ["In parentheses the validation split.", ""]
    lines += table({"date": one.date, **row(run, ("validation",))} for one in newest for run in one.runs)
    return "\n".join([*lines, ""])


def read_record(path: Path) -> Record:
    """Read a record; without a file it is empty. Raises DamagedZooError for a file of another kind."""
    try:
        return Record.model_validate_json(path.read_bytes()) if path.exists() else Record()
    except ValidationError as error:
        raise DamagedZooError(f"{path}: not a record of speedruns ({error})") from error


def commit() -> str:
    """Return the short name of this commit, with ``-dirty`` if files other than the record differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!speedrun.*")
    return (_git("describe", "--always", "--exclude=*") or "unknown") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=DOCS, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@click.command()
@click.argument("zoo", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recipe", "recipes", multiple=True, help="Name and overrides, separated by blanks; can be repeated.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--budget", default=300.0, show_default=True, help="Processor seconds of a training without fixed end.")
@click.option("--ladder", default="", help="Numbers of epochs to try, such as 2,4,8.")
@click.option("--record", is_flag=True, help="Append to the record, and write its page.")
@click.option(
    "--docs", default=DOCS, type=click.Path(file_okay=False, path_type=Path), help="Folder of record and page."
)
def main(zoo: Path, recipes: tuple[str, ...], seeds: int, budget: float, ladder: str, record: bool, docs: Path) -> None:
    """Measure the processor seconds until the paper's cells are reached, and print a table."""
    opened = open_zoo(zoo)
    try:
        before = read_record(docs / "speedrun.json")
        runs = measure_all(zoo, recipes or RECIPES, [int(n) for n in ladder.split(",") if n], seeds, budget)
    except ZooError as error:
        raise click.ClickException(str(error)) from error
    measurement = Measurement(
        date=datetime.date.today().isoformat(),
        commit=commit(),
        machine=machine(),
        torch=torch.__version__,
        zoo=opened.name,
        zoo_sha256=hashlib.sha256((zoo / "zoo.json").read_bytes()).hexdigest(),
        models=len(opened.models),
        budget=budget,
        runs=tuple(runs),
    )
    click.echo("\n".join(table(summary(measurement, one) for one in by_recipe(measurement))))
    if record:
        after = Record(measurements=(*before.measurements, measurement))
        write_durably(docs / "speedrun.json", pretty_json(after.dump()))
        write_durably(docs / "speedrun.md", render(after).encode())


if __name__ == "__main__":
    main()
