"""Compare TETRIS zoos with what the paper publishes without a trained encoder, and search for the images behind them.

    python benchmarks/calibrate_tetris.py --out /tmp/tetris                                   # the search
    python benchmarks/calibrate_tetris.py --out /tmp/tetris --set images.noise_train=0.5      # one setting
    python benchmarks/calibrate_tetris.py --out /tmp/tetris --zoo tetris_hyp --trials 0 --models 360   # as bundled

The paper shows four shapes (Figure 6) and gives neither the number of images nor their noise, the scale of the pixels,
or the batch size. Its learning rate and number of epochs are kept. A setting is scored by the distance of its cells to
the published ones: R2 of linear probes of W, PCA and s(W) (Table 5), and the R2 of the best linear code of permuted
networks with 50, 33 and 20 numbers, beside what the paper's ED and EcD reconstruct with as many (Tables 1 and 12). No
encoder is trained, and none of its cells is compared.

The search is random with successive halving: settings that were tried by hand first, then random ones, each a zoo of
250 models; the best of them grow to 1,000. A process per core scores one setting after the other, in a minute or two
each. Zoos that are complete are not trained again.
"""

import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import numpy as np
import torch

from representation.dataset import ZooDataset
from representation.evaluation.baselines import CosinePca, LinearPca, PaperStatistics, RawWeights, RbfPca, Umap
from representation.evaluation.scoring import Method, Scorer
from representation.paper import published, published_ablation
from representation.recipes import Augmentation, load_recipe
from representation.training.augmentation import Augmenter
from representation.training.linear_code import linear_code
from zootools import build, open_zoo
from zootools.bundled import find_spec
from zootools.spec import load_spec

COMPONENTS = 50
"""The paper's latent length on these zoos."""
F_SCORES = tuple(f"test_f1_{number}" for number in range(4))
TARGETS = {
    "tetris_seed": ("epoch", "test_accuracy", "generalization_gap", *F_SCORES),
    "tetris_hyp": ("epoch", "test_accuracy", "generalization_gap", "lr", "activation", "init"),
}
SHORT = {"epoch": "Eph", "test_accuracy": "Acc", "generalization_gap": "Ggap", "activation": "Act", "init": "Init"}
SHORT |= {"lr": "LR"} | {name: f"F{number}" for number, name in enumerate(F_SCORES)}
CODES = {50: None, 33: "compression_3", 20: "compression_5"}
"""Lengths of a code, and the section of paper.yaml with the encoders of this length; Table 1 has those of length 50."""
WEIGHTS = {"s(W)": 3.0, "code": 3.0, "W": 1.0, "PCA-linear": 1.0, "PCA-cosine": 0.5, "PCA-rbf": 0.5}
"""Weight of the mean absolute difference of each group of cells in the distance; UMAP is printed only."""

AXES: dict[str, tuple[float, ...]] = {
    "images.mean": (0.0, 0.15, 0.25, 0.35, 0.5),
    "images.std": (0.5, 2 / 3, 1.0, 1.5),
    "images.train": (2000, 4000, 8000),
    "images.test": (1000, 4000, 10_000),
    "images.noise_train": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "images.noise_test": (0.7, 0.8, 0.9, 1.0, 1.2, 1.4),
    "training.batch_size": (1, 2),
}
"""The values from which the search draws."""
BEST = 4
"""Settings that a rung of the search hands to the next."""
BY_HAND = (
    (0.25, 1.0, 4000, 10_000, 0.5, 1.0, 1),  # the bundled specification
    (0.25, 1.0, 4000, 4000, 0.5, 1.3, 1),
    (0.35, 2 / 3, 4000, 1000, 0.7, 1.2, 1),
    (0.35, 2 / 3, 4000, 1000, 0.467, 0.8, 1),
    (0.25, 1.0, 4000, 1000, 0.5, 1.0, 1),
    (0.0, 1.0, 4000, 1000, 0.5, 0.8, 1),
    (0.0, 1.0, 8000, 1000, 0.5, 0.9, 1),
)
"""Settings that trials by hand found near the paper (docs/log.md), in the order of `AXES`."""


@dataclass(frozen=True)
class Cell:
    """One figure of a zoo in percent, and the paper's."""

    group: str
    name: str
    ours: float
    paper: float | None

    @property
    def doubtful(self) -> bool:
        """Whether the paper prints less than 1 in Table 5, where other cells are percentages."""
        return self.paper is not None and abs(self.paper) < 1


@dataclass(frozen=True)
class Trial:
    """A setting with its cells."""

    zoo: str
    setting: tuple[str, ...]
    models: int
    cells: tuple[Cell, ...]

    @property
    def distance(self) -> float:
        """The mean absolute difference of each group of cells, weighted by `WEIGHTS`."""
        total = weights = 0.0
        for group, weight in WEIGHTS.items():
            off = [abs(c.ours - c.paper) for c in self.cells if c.group == group and c.paper and not c.doubtful]
            if off:
                total, weights = total + weight * sum(off) / len(off), weights + weight
        return total / weights

    def lines(self) -> Iterator[str]:
        """Yield the table: ours, the paper's, and the difference of every cell."""
        yield f"{self.zoo} {' '.join(self.setting)}: {self.models} models, distance {self.distance:.1f}"
        yield f"{'':12}{'cell':>14}{'ours':>8}{'paper':>8}{'diff':>8}"
        for cell in self.cells:
            paper, difference = f"{'':>8}", ""
            if cell.paper is not None:
                paper = f"{cell.paper:8.2f}" if cell.doubtful else f"{cell.paper:8.1f}"
                difference = "" if cell.doubtful else f"{cell.ours - cell.paper:+8.1f}"
            yield f"{cell.group:12}{cell.name:>14}{cell.ours:8.1f}{paper}{difference}"


# --- the cells of one zoo ---------------------------------------------------------------------------------------


def measure(zoo: str, setting: Sequence[str], models: int, out: Path, *, every: int, thorough: bool) -> Trial:
    """Build a zoo, or what is missing of it, and return its cells.

    Args:
        zoo: the bundled specification that is changed.
        setting: the changes, as ``--set`` takes them.
        models: number of models.
        out: folder of the zoos.
        every: the cells are those of every n-th epoch.
        thorough: also fit kernel PCA and UMAP, which takes minutes.
    """
    folder = out / "-".join([zoo, *(change.split(".", 1)[1].replace("=", "") for change in setting)])
    build(load_spec(find_spec(zoo), [*setting, f"models={models}"]), folder, workers=1, quiet=True)
    home = ZooDataset.of(open_zoo(folder), load_recipe("default", [f"epochs.every={every}"]))
    cells = [*_probed(home, zoo, thorough), *(_codes(home) if zoo == "tetris_seed" else ()), *_accuracies(home)]
    return Trial(zoo, tuple(setting), models, tuple(cells))


def _probed(home: ZooDataset, zoo: str, thorough: bool) -> Iterator[Cell]:
    """Yield the scores of the baselines on the test split."""
    scorer = Scorer(home, [], list(TARGETS[zoo]), {}, probes=("paper",))
    weights = home.splits["train"].weights
    methods = [RawWeights(), PaperStatistics(), LinearPca(COMPONENTS), CosinePca(COMPONENTS)]
    for method in [*methods, *((RbfPca(COMPONENTS), Umap(COMPONENTS)) if thorough else ())]:
        method.fit(weights, home.schema)
        scorer.score(Method(method.name, method.embed))
    for score in scorer.scores:
        if score.split == "test" and score.metric != "kendall_tau":
            value = published(zoo, zoo, score.method, score.target, score.metric)
            paper = None if value is None else 100 * value
            yield Cell(score.method, SHORT[score.target], 100 * (score.value or 0), paper)


def _codes(home: ZooDataset) -> Iterator[Cell]:
    """Yield the R2 of the best linear code of each length, on permuted test networks."""
    augmenter = Augmenter(home.schema, Augmentation(permute=True, erase_probability=0.0))
    views = augmenter.views(home.splits["test"].weights, torch.Generator().manual_seed(0), copies=1).clean
    for length, section in CODES.items():
        code = linear_code(home.splits["train"].weights, home.schema, length)
        assert code is not None  # only networks much larger than these have none
        for loss, group in (("ED", "code"), ("EcD", "code, EcD")):  # EcD: what a code must reach at least
            yield Cell(group, f"{length} numbers", 100 * code.r2(views), 100 * (_published_code(loss, section) or 0))


def _published_code(loss: str, section: str | None) -> float | None:
    if section is None:
        return published("tetris_seed", "tetris_seed", loss, "reconstruction", "r2")
    return published_ablation(section, loss, "reconstruction")


def _accuracies(home: ZooDataset) -> Iterator[Cell]:
    """Yield the range of the accuracies over all checkpoints; the paper shows none of TETRIS."""
    values = torch.cat([part.targets["test_accuracy"].values for part in home.splits.values()])
    for name, share in (("lowest", 0.0), ("median", 0.5), ("highest", 1.0)):
        yield Cell("accuracy", name, 100 * float(values.quantile(share)), None)


# --- the search -------------------------------------------------------------------------------------------------


def search(zoo: str, out: Path, count: int, seed: int, models: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the best settings, best first, by successive halving: `BEST` of a rung grow to the models of the next."""
    settings = list(settings_to_try(count, seed))
    for rung, size in enumerate(models):
        trials = []
        # Not a Pool: its daemons could not start the processes that build.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            scoring = partial(_measure_in_worker, zoo, models=size, out=out, every=1 if rung else 3)
            for future in as_completed([pool.submit(scoring, setting) for setting in settings]):
                trial = future.result()
                trials.append(trial)
                shown = f"{trial.distance:6.1f}  {' '.join(trial.setting)}"
                click.echo(f"{len(trials):3} of {len(settings)}: {shown}", err=True)
                with (out / "trials.jsonl").open("a") as file:
                    file.write(json.dumps(asdict(trial)) + "\n")
        trials.sort(key=lambda trial: trial.distance)
        settings = [trial.setting for trial in trials[:BEST]]
    return settings


def _measure_in_worker(zoo: str, setting: tuple[str, ...], models: int, out: Path, every: int) -> Trial:
    torch.set_num_threads(1)
    return measure(zoo, setting, models, out, every=every, thorough=False)


def settings_to_try(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield the settings of `BY_HAND`, then random ones, ``count`` in all, each once."""
    draws, seen = np.random.default_rng(seed), set[tuple[str, ...]]()
    tried = iter(BY_HAND)
    while len(seen) < count:
        values = next(tried, None) or tuple(float(draws.choice(axis)) for axis in AXES.values())
        chosen = dict(zip(AXES, values, strict=True))
        setting = tuple(f"{name}={value:.6g}" for name, value in chosen.items())
        # Test images that are no noisier than the training images leave the gap unpredictable.
        if setting not in seen and chosen["images.noise_test"] > chosen["images.noise_train"]:
            seen.add(setting)
            yield setting


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the zoos.")
@click.option("--zoo", default="tetris_seed", type=click.Choice(list(TARGETS)), show_default=True)
@click.option("--set", "setting", multiple=True, metavar="KEY=VALUE", help="Score this setting instead of searching.")
@click.option("--models", multiple=True, type=int, default=(250, 1000), show_default=True, help="Models of each rung.")
@click.option("--trials", default=24, show_default=True, help="Settings in the first rung; 0 scores the bundled one.")
@click.option("--seed", default=0, show_default=True, help="Of the random settings.")
@click.option("--thorough", is_flag=True, help="Also fit kernel PCA and UMAP to the settings that are printed.")
def main(
    out: Path,
    zoo: str,
    setting: tuple[str, ...],
    models: tuple[int, ...],
    trials: int,
    seed: int,
    thorough: bool,
) -> None:
    """Print the cells of the best settings, or of one."""
    out.mkdir(parents=True, exist_ok=True)
    searched = trials and not setting
    for chosen in search(zoo, out, trials, seed, models) if searched else [setting]:
        for line in measure(zoo, chosen, models[-1], out, every=1, thorough=thorough).lines():
            click.echo(line)


if __name__ == "__main__":
    main()
