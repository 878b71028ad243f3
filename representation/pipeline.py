"""Train encoders on a zoo, and score them beside the baselines for every property of its models.

>>> from representation import represent
>>> results = represent("zoos/digits_hyp", "default", baselines_only=True)
>>> print(results.render())
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from representation.dataset import ZooDataset, check_same_layers
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import Umap, baselines
from representation.evaluation.results import Results, ResultsIdentity, read_identity
from representation.evaluation.rows import ShownScores
from representation.evaluation.scoring import LINEAR_CODE, Method, Scorer
from representation.existing import ExistingEncoder
from representation.networks import in_parts, read_networks
from representation.output import DIGITS, TABLES, check_writable, default_out
from representation.recipes import Recipe, load_recipe
from representation.search.run import search_recipes
from representation.training.distributed import train_encoders
from representation.training.folder import check_identity
from representation.training.memory import bytes_on_disk, check_memory, memory_named
from representation.training.start import best_linear_code, start_encoder
from representation.training.train import Weights, check_folders, train_encoder, training_data
from zootools.choices import check_word
from zootools.errors import SpecError
from zootools.extras import optional
from zootools.open import open_zoo
from zootools.zoo import Zoo

DEFAULT = "default"
"""The recipe where none is named."""
ENCODER_ENGINES = ("local", "ray")
"""The engines of `zootools.engines.table.ENGINES` that train encoders."""


@dataclass(frozen=True)
class RepresentOptions:
    """How to train encoders. `represent` takes the fields as keyword arguments."""

    encoder: Encoder | str | Path | None = None
    """An existing encoder to score, and to train none: the encoder, its folder, or its name
    (`representation.existing`). ``out`` is then by default named after the encoder."""
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

    def check(self, baselines_only: bool, seeds: int) -> None:
        """Raise SpecError for options that exclude each other, or need a package that is not installed."""
        check_word("engine", self.engine, ENCODER_ENGINES)
        if self.track is not None and self.engine != "local":
            raise SpecError("track: the encoders of a cluster are not tracked; use the local engine")
        if self.track is not None and not baselines_only:
            optional("trackio", "track", "track")
        if self.search is not None and baselines_only:
            raise SpecError("search: baselines have no recipe to search for")
        if self.encoder is not None:
            training = {
                "baselines_only": baselines_only,
                "seeds": seeds != 1,
                "epochs": self.epochs is not None,
                "search": self.search is not None,
                "engine": self.engine != "local",
                "track": self.track is not None,
            }
            if given := [name for name, used in training.items() if used]:
                raise SpecError(f"encoder: an existing encoder is not trained; leave out {', '.join(given)}")


class RepresentKeywords(TypedDict, total=False):
    """The fields of `RepresentOptions` as keyword arguments; mypy compares the two."""

    encoder: Encoder | str | Path | None
    epochs: int | None
    search: str | Path | None
    engine: str
    address: str | None
    track: str | None
    quiet: bool


def represent(
    zoo: Zoo | str | Path,
    recipe: str | None = None,
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    transfer_to: Sequence[Zoo | str | Path] = (),
    baselines_only: bool = False,
    **keywords: Unpack[RepresentKeywords],
) -> Results:
    """Train encoders on a zoo's weights, and fit linear probes of every property of its models to their output.

    The baselines (`representation.evaluation.baselines`) are scored beside the encoders; their scores are kept in the
    user's cache (`representation.evaluation.stored`).

    Args:
        zoo: the zoo, its folder, or its name.
        recipe: the name of a bundled recipe, or a recipe file; by default that of an existing encoder, else
            ``default``.
        out: folder of encoders and results; by default that of `representation.output.default_out`. Encoders in it
            that are finished are not trained again.
        overrides: changes of the recipe, such as ``"loss.kind=ED"``.
        seeds: number of encoders to train, with the seeds 0, 1, ...
        transfer_to: other zoos of the same layer schema; encoder and probes are scored on their test splits too.
        baselines_only: train no encoder.
        keywords: the fields of `RepresentOptions`: where to train, whether to search for a recipe first, or an
            existing encoder.

    Raises SpecError for zoos that cannot be probed: without models in the training or the test split, without a
    property that varies, or of another layer schema than the first, or than the existing encoder; and for an ``out``
    that belongs to another zoo or recipe. Raises StorageError for one that cannot be written to.
    """
    options = RepresentOptions(**keywords)
    options.check(baselines_only, seeds)
    home_zoo = _opened(zoo)
    run = _Run.of(home_zoo, recipe, out, [*overrides, *options.changes(baselines_only)], options.encoder)
    if out is None and options.search is not None:
        run = replace(run, out=default_out(home_zoo, str(options.search)))
    check_writable(run.out)
    data = ProbeData.of(home_zoo, [_opened(other) for other in transfer_to], run.recipe)
    notes = data.notes + run.notes
    if options.search is not None:
        run, how = _searched(run, home_zoo, data.home, options)
        notes.append(how)
    table = run.out / ("baselines.parquet" if baselines_only else "results.parquet")
    folders = [run.out / f"seed-{seed}" for seed in range(0 if baselines_only or run.existing else seeds)]
    identity = run.identity(data.home)
    _check_fitness(home_zoo, data.home, identity, table, folders, options)
    scorer = Scorer(data.home, data.others, data.targets, data.excluded)
    method = None if baselines_only else _methods(run, home_zoo, len(data.home.splits["train"]), folders, options)
    notes += _score(scorer, run.recipe, seeds, method, options.quiet)
    label = " ".join([Path(run.name).stem, *run.overrides])
    results = Results.of(scorer.scores, data.home.name, label, data.home.counts, notes + scorer.notes, data.excluded)
    results.save(table, identity)
    return results


@dataclass(frozen=True)
class _Run:
    """What one call of `represent` scores, and where its results go."""

    recipe: Recipe
    name: str
    """Of the recipe, or of the existing encoder."""
    overrides: Sequence[str]
    out: Path
    existing: ExistingEncoder | None
    notes: list[str]

    @classmethod
    def of(
        cls,
        zoo: Zoo,
        recipe: str | None,
        out: Path | None,
        overrides: Sequence[str],
        encoder: Encoder | str | Path | None,
    ) -> "_Run":
        """Load the recipe, and the existing encoder if there is one. Raises SpecError if that does not fit the zoo."""
        if encoder is None:
            name = DEFAULT if recipe is None else recipe
            return cls(load_recipe(name, overrides), name, overrides, out or default_out(zoo, name), None, [])
        existing = ExistingEncoder.load(encoder, recipe)
        existing.check(zoo)
        out = out or default_out(zoo, f"{Path(existing.name).name}-{existing.sha256[:DIGITS]}")
        return cls(existing.adapted(overrides), existing.name, overrides, out, existing, existing.notes)

    def identity(self, home: ZooDataset) -> ResultsIdentity:
        """Return what the results belong to."""
        sha256 = self.existing.sha256 if self.existing is not None else None
        return ResultsIdentity(recipe=self.recipe, weights_sha256=home.digest, encoder_sha256=sha256)


@dataclass(frozen=True)
class ProbeData:
    """The zoos of one call of `represent`, and which of their properties are probed."""

    home: ZooDataset
    others: list[ZooDataset]
    targets: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why."""

    @classmethod
    def of(cls, zoo: Zoo, others: Sequence[Zoo], recipe: Recipe) -> "ProbeData":
        """Read the zoos. Raises SpecError for zoos that cannot be probed."""
        for other in others:
            check_same_layers(zoo.schema, str(zoo.folder), other.schema, str(other.folder))
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


def _searched(run: _Run, zoo: Zoo, home: ZooDataset, options: RepresentOptions) -> tuple[_Run, str]:
    """Search for a recipe; return the run with the best one, and a sentence about it."""
    training_data(zoo, run.recipe)  # refuses a zoo with too few models before the search begins
    space = Path(str(options.search))
    best, how = search_recipes(
        home, run.name, space, run.out, overrides=run.overrides, address=options.address, quiet=options.quiet
    )
    out = run.out / f"trial-{best.number:05d}"
    return replace(run, recipe=best.recipe, overrides=[*run.overrides, *best.changes], out=out), how


def _check_fitness(
    zoo: Zoo,
    home: ZooDataset,
    identity: ResultsIdentity,
    table: Path,
    folders: Sequence[Path],
    options: RepresentOptions,
) -> None:
    """Refuse, before anything is computed, an encoder that does not fit into memory and folders that cannot be used.

    ``table`` is the file of the results, ``folders`` are those of the encoders to train.
    """
    recipe, rows = identity.recipe, len(home.splits["train"])
    check_memory(home.schema, recipe, rows, training=bool(folders) and options.engine == "local")
    check_writable(table.parent, TABLES + len(folders) * bytes_on_disk(home.schema, recipe))
    if any(folder.exists() for folder in folders):
        check_folders(Weights.of(zoo, recipe, quiet=True), recipe, folders)
    found = read_identity(table)
    if found is not None:
        check_identity(table, "table of results", found, identity)


def _methods(
    run: _Run, zoo: Zoo, fitted_on: int, folders: Sequence[Path], options: RepresentOptions
) -> Callable[[int], Method]:
    """Return a function from a seed to its encoder as a method. On a cluster all are trained before it returns.

    An existing encoder is not trained; its method is that of every seed.
    """
    if (existing := run.existing) is not None:
        return lambda seed: existing.method(run.recipe)
    encoders: list[Encoder] = []
    if options.engine == "ray":
        encoders = train_encoders(zoo, run.recipe, folders, address=options.address, quiet=options.quiet)

    def train(seed: int) -> Method:
        begun = time.process_time()
        if encoders:
            encoder = encoders[seed]
        else:
            encoder = train_encoder(zoo, run.recipe, folders[seed], seed, quiet=options.quiet, track=options.track)
        return Method.of_encoder(encoder, run.recipe, seed, fitted_on, time.process_time() - begun)

    return train


def embed(zoo: Zoo | str | Path, encoder: Encoder | str | Path | None = None) -> Tensor:
    """Return the representations of all checkpoints of a zoo, float32 ``[checkpoints, L]``, in the metadata's order.

    Args:
        zoo: the zoo, its folder, or its name.
        encoder: the encoder, its folder, or its name; by default the one of the recipe ``default``, trained on this
            zoo if `represent` has not trained it already.
    """
    opened = _opened(zoo)
    if encoder is None:
        encoder = train_encoder(opened, load_recipe(DEFAULT), default_out(opened, DEFAULT) / "seed-0")
    if not isinstance(encoder, Encoder):
        encoder = Encoder.from_pretrained(str(encoder))
    return torch.cat([encoder.embed(rows) for rows in in_parts(read_networks(opened))])


def _opened(zoo: Zoo | str | Path) -> Zoo:
    return zoo if isinstance(zoo, Zoo) else open_zoo(zoo)


def _score(
    scorer: Scorer, recipe: Recipe, seeds: int, encoder: Callable[[int], Method] | None, quiet: bool
) -> list[str]:
    """Score all methods: once for each seed, or only once if they do not depend on it. Return remarks.

    Beside an encoder that reconstructs is the best linear code of the same length, which bounds linear encoders.

    Methods that cannot be fitted are added to ``scorer.excluded``, with the reason.
    """
    shown = ShownScores(scorer, quiet)
    schema, weights = scorer.home.schema, scorer.home.splits["train"].networks
    begun, code = time.process_time(), None
    if recipe.loss.reconstructs or recipe.encoder.starts_from_pca:
        code = best_linear_code(schema, recipe, weights)
        if code is None:
            scorer.excluded[LINEAR_CODE] = f"{schema.size:,} weights without permutations: too large"
    seconds = time.process_time() - begun
    for seed in range(seeds):
        for baseline in baselines(recipe.sized(schema.size).encoder.length, len(weights), seed):
            shown.baseline(baseline, seed)
        with torch.random.fork_rng(devices=[]), memory_named(schema, recipe, len(weights), training=False):
            torch.manual_seed(seed)
            untrained = start_encoder(schema, recipe, weights, code)
        shown.method(Method("untrained", untrained.embed, seed))
        if seed == 0 and code is not None and recipe.loss.reconstructs:
            shown.method(Method.of_linear_code(code, schema, recipe, len(weights), seconds))
        if encoder is not None:
            shown.method(encoder(seed))
    return shown.notes
