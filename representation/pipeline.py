"""Train encoders on a zoo, and score them beside the baselines for every property of its models.

>>> from representation import represent
>>> results = represent("zoos/digits_hyp", "default", baselines_only=True)
>>> print(results.render())
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from representation.dataset import ZooDataset, check_same_layers
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import Umap, UnfitError, baselines
from representation.evaluation.results import Results
from representation.evaluation.rows import Rows
from representation.evaluation.scoring import LINEAR_CODE, Method, Scorer
from representation.recipes import Recipe, load_recipe
from representation.search.run import search_recipes
from representation.search.space import Trial
from representation.training.distributed import train_encoders
from representation.training.memory import check_memory, memory_named
from representation.training.start import best_linear_code, start_encoder
from representation.training.train import Weights, check_folders, train_encoder, training_data
from zootools.choices import check_word
from zootools.errors import SpecError, StorageError
from zootools.extras import optional
from zootools.open import open_zoo
from zootools.zoo import Zoo

ENCODER_ENGINES = ("local", "ray")
"""The engines of `zootools.engines.table.ENGINES` that train encoders."""


@dataclass(frozen=True)
class RepresentOptions:
    """How to train encoders. `represent` takes the fields as keyword arguments."""

    epochs: int | None = None
    """Number of epochs to train, instead of ``training.epochs`` of the recipe."""
    search: str | Path | None = None
    """A search space (`representation.search.space`): its best recipe is searched for first, on Ray, and then used.
    ``out`` is then ``representations/<zoo>/<space>`` by default, and encoders and results are written to a folder in
    it that is named after the best trial."""
    engine: str = "local"
    """``local``, or ``ray`` to train the encoders at once on a Ray cluster (`representation.training.distributed`)."""
    address: str | None = None
    """Address of the Ray cluster; by default one is started on this machine."""
    track: str | None = None
    """Log the training to this trackio project."""
    quiet: bool = False
    """Print nothing on stderr."""

    def changes(self, baselines_only: bool) -> list[str]:
        """Return the overrides of the recipe."""
        return [] if self.epochs is None or baselines_only else [f"training.epochs={self.epochs}"]

    def check(self, baselines_only: bool) -> None:
        """Raise SpecError for options that exclude each other, or need a package that is not installed."""
        check_word("engine", self.engine, ENCODER_ENGINES)
        if self.track is not None and self.engine != "local":
            raise SpecError("track: the encoders of a cluster are not tracked; use the local engine")
        if self.track is not None and not baselines_only:
            optional("trackio", "track", "track")
        if self.search is not None and baselines_only:
            raise SpecError("search: baselines have no recipe to search for")


class RepresentKeywords(TypedDict, total=False):
    """The fields of `RepresentOptions` as keyword arguments; mypy compares the two."""

    epochs: int | None
    search: str | Path | None
    engine: str
    address: str | None
    track: str | None
    quiet: bool


def represent(
    zoo: Zoo | str | Path,
    recipe: str = "default",
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    transfer_to: Sequence[Zoo | str | Path] = (),
    baselines_only: bool = False,
    **keywords: Unpack[RepresentKeywords],
) -> Results:
    """Train encoders on a zoo's weights, and fit linear probes of every property of its models to their output.

    The baselines (`representation.evaluation.baselines`) are scored beside the encoders.

    Args:
        zoo: the zoo, its folder, or its name.
        recipe: the name of a bundled recipe, or a recipe file.
        out: folder of encoders and results; ``representations/<zoo>/<recipe>`` by default. Encoders in it that are
            finished are not trained again.
        overrides: changes of the recipe, such as ``"loss.kind=ED"``.
        seeds: number of encoders to train, with the seeds 0, 1, ...
        transfer_to: other zoos of the same layer schema; encoder and probes are scored on their test splits too.
        baselines_only: train no encoder.
        keywords: the fields of `RepresentOptions`: where to train, and whether to search for a recipe first.

    Raises SpecError for zoos that cannot be probed: without models in the training or the test split, without a
    property that varies, or of another layer schema than the first.
    """
    options = RepresentOptions(**keywords)
    options.check(baselines_only)
    overrides = [*overrides, *options.changes(baselines_only)]
    settings, home_zoo = load_recipe(recipe, overrides), _opened(zoo)
    out = out or default_out(home_zoo, str(options.search or recipe))
    data = _Data.of(home_zoo, [_opened(other) for other in transfer_to], settings)
    notes = data.notes
    if options.search is not None:
        training_data(home_zoo, settings)  # refuses a zoo with too few models before the search begins
        best, how = _search(data.home, recipe, out, overrides, options)
        settings, overrides, out = best.recipe, [*overrides, *best.changes], out / f"trial-{best.number:05d}"
        notes.append(how)
    folders = [] if baselines_only else [out / f"seed-{seed}" for seed in range(seeds)]
    _check_fitness(home_zoo, data.home, settings, out, folders, options)
    train = None if baselines_only else _training(home_zoo, settings, folders, options)
    scorer = Scorer(data.home, data.others, data.targets, data.excluded)
    rows = Rows(data.home.name, data.targets)
    for method in _methods(data.home, settings, seeds, train, data.excluded):
        before = len(scorer.scores)
        seconds = scorer.score(method)
        if not options.quiet:
            rows.show(method, seconds, scorer.scores[before:])
    notes += scorer.notes
    label = " ".join([Path(recipe).stem, *overrides])
    results = Results.of(scorer.scores, data.home.name, label, data.home.counts, notes, data.excluded)
    results.save(out / ("baselines.parquet" if baselines_only else "results.parquet"))
    return results


@dataclass(frozen=True)
class _Data:
    """The zoos of one call of `represent`, and which of their properties are probed."""

    home: ZooDataset
    others: list[ZooDataset]
    targets: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why."""

    @classmethod
    def of(cls, zoo: Zoo, others: Sequence[Zoo], recipe: Recipe) -> "_Data":
        """Read the zoos. Raises SpecError for zoos that cannot be probed."""
        for other in others:
            check_same_layers(zoo, other)
        home = ZooDataset.of(zoo, recipe)
        targets, excluded = home.choose()
        away = [ZooDataset.of(other, recipe).as_transfer(home, targets) for other in others]
        for index, dataset in enumerate(away):
            if dataset.name in [earlier.name for earlier in (home, *away[:index])]:
                dataset.name += f" ({index + 2})"  # two zoos of one specification
        if missing := Umap.missing(len(home.splits["train"])):
            excluded[Umap.name] = missing
        return cls(home, away, targets, excluded)

    @property
    def notes(self) -> list[str]:
        """The remarks on the zoos."""
        return [str(note) for dataset in (self.home, *self.others) for note in dataset.notes]


def _search(
    home: ZooDataset, recipe: str, out: Path, overrides: Sequence[str], options: RepresentOptions
) -> tuple[Trial, str]:
    space = Path(str(options.search))
    return search_recipes(home, recipe, space, out, overrides=overrides, address=options.address, quiet=options.quiet)


def _check_fitness(
    zoo: Zoo, home: ZooDataset, recipe: Recipe, out: Path, folders: Sequence[Path], options: RepresentOptions
) -> None:
    """Refuse, before anything is computed, an encoder that does not fit into memory and folders that cannot be used.

    ``folders`` are those of the encoders to train.
    """
    training = bool(folders) and options.engine == "local"
    check_memory(home.schema, recipe, len(home.splits["train"]), training=training)
    above = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{above}: {'is not writable' if above.is_dir() else 'is not a folder'}; use another --out")
    if any(folder.exists() for folder in folders):
        check_folders(Weights.of(zoo, recipe, quiet=True), recipe, folders)


def _training(zoo: Zoo, recipe: Recipe, folders: Sequence[Path], options: RepresentOptions) -> Callable[[int], Encoder]:
    """Return a function from a seed to its trained encoder. On a cluster all are trained before it returns."""
    if options.engine == "ray":
        encoders = train_encoders(zoo, recipe, folders, address=options.address, quiet=options.quiet)
        return encoders.__getitem__

    def train(seed: int) -> Encoder:
        return train_encoder(zoo, recipe, folders[seed], seed, quiet=options.quiet, track=options.track)

    return train


def default_out(zoo: Zoo, recipe: str) -> Path:
    """Return the default folder of the encoders for a zoo and a recipe."""
    return Path("representations") / Path(zoo.name).name / Path(recipe).stem


def embed(zoo: Zoo | str | Path, encoder: Encoder | str | Path | None = None) -> Tensor:
    """Return the representations of all checkpoints of a zoo, float32 ``[checkpoints, L]``, in the metadata's order.

    Args:
        zoo: the zoo, its folder, or its name.
        encoder: the encoder, its folder, or its name; by default the one of the recipe ``default``, trained on this
            zoo if `represent` has not trained it already.
    """
    opened = _opened(zoo)
    if encoder is None:
        encoder = train_encoder(opened, load_recipe("default"), default_out(opened, "default") / "seed-0")
    if not isinstance(encoder, Encoder):
        encoder = Encoder.from_pretrained(str(encoder))
    return encoder.embed(opened.weights())


def _opened(zoo: Zoo | str | Path) -> Zoo:
    return zoo if isinstance(zoo, Zoo) else open_zoo(zoo)


def _methods(
    home: ZooDataset,
    recipe: Recipe,
    seeds: int,
    train: Callable[[int], Encoder] | None,
    excluded: dict[str, str],
) -> Iterator[Method]:
    """Yield the fitted methods: once for each seed, or only once if they do not depend on it.

    Beside an encoder that reconstructs is the best linear code of the same length, which bounds linear encoders.

    Methods that cannot be fitted are added to ``excluded``, with the reason.
    """
    weights = home.splits["train"].weights
    begun, code = time.process_time(), None
    if recipe.loss.reconstructs or recipe.encoder.starts_from_pca:
        code = best_linear_code(home.schema, recipe, weights)
        if code is None:
            excluded[LINEAR_CODE] = f"{home.schema.size:,} weights without permutations: too large"
    seconds = time.process_time() - begun
    for seed in range(seeds):
        for baseline in baselines(recipe.sized(home.schema.size).encoder.length, len(weights), seed):
            if seed == 0 or baseline.seeded:
                try:
                    yield Method.fitted(baseline, weights, home.schema, seed)
                except UnfitError as error:
                    excluded[baseline.name] = str(error)
        with torch.random.fork_rng(devices=[]), memory_named(home.schema, recipe, len(weights), training=False):
            torch.manual_seed(seed)
            untrained = start_encoder(home.schema, recipe, weights, code)
        yield Method("untrained", untrained.embed, seed)
        if seed == 0 and code is not None and recipe.loss.reconstructs:
            yield Method.of_linear_code(code, home.schema, recipe, len(weights), seconds)
        if train is not None:
            begun = time.process_time()
            encoder = train(seed)
            yield Method.of_encoder(encoder, recipe, seed, len(weights), time.process_time() - begun)
