"""The command: train encoders on a zoo, and score them beside the baselines, for every property of its models.

>>> from representation import represent
>>> results = represent("zoos/digits_hyp", "default", baselines_only=True)
>>> print(results.render())
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from representation.dataset import ZooDataset, check_same_layers
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import Umap, UnfitError, baselines
from representation.evaluation.results import Results
from representation.evaluation.scoring import Method, Scorer, reconstruction_r2
from representation.recipes import Recipe, load_recipe
from representation.search.run import search_recipes
from representation.training.distributed import train_encoders
from representation.training.memory import check_memory, memory_named
from representation.training.train import Weights, check_folders, train_encoder, training_data
from zootools.choices import check_word
from zootools.errors import SpecError, StorageError
from zootools.extras import optional
from zootools.open import open_zoo
from zootools.text import say
from zootools.zoo import Zoo

ENCODER_ENGINES = ("local", "ray")
"""Those of `zootools.engines.table.ENGINES` that train encoders too."""


def represent(
    zoo: Zoo | str | Path,
    recipe: str = "default",
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    epochs: int | None = None,
    transfer_to: Sequence[Zoo | str | Path] = (),
    baselines_only: bool = False,
    engine: str = "local",
    address: str | None = None,
    search: str | Path | None = None,
    track: str | None = None,
    quiet: bool = False,
) -> Results:
    """Learn a representation of a zoo's weights and probe it, and the baselines, for every property of its models.

    Args:
        zoo: the zoo, its folder, or its name.
        recipe: the name of a bundled recipe, or a recipe file.
        out: where encoders and results go; ``representations/<zoo>/<recipe>`` by default. What is trained there
            already is not trained again.
        overrides: changes of the recipe, ``"loss.kind=ED"``.
        seeds: encoders to train, with the seeds 0, 1, ...
        epochs: how long to train, instead of what the recipe says.
        transfer_to: other zoos of the same layer schema, on whose test splits encoder and probes are scored too.
        baselines_only: train no encoder.
        engine: ``local``, or ``ray`` to train the encoders at once on a Ray cluster
            (`representation.training.distributed`).
        address: of the cluster; by default one is started on this machine.
        search: a search space, whose best recipe is searched for first, on Ray, and then represented
            (`representation.search.run`); ``out`` is then ``representations/<zoo>/<space>`` by default, and encoders
            and results go into a folder in it that is named after the best trial.
        track: log the training to this trackio project.
        quiet: say nothing on stderr.

    Raises SpecError for zoos that cannot be probed: without models in the training or the test split, without a
    property that varies, or of another layer schema than the first.
    """
    check_word("engine", engine, ENCODER_ENGINES)
    if track is not None and engine != "local":
        raise SpecError("track: the encoders of a cluster are not tracked; use the local engine")
    if track is not None and not baselines_only:
        optional("trackio", "track", "track")
    if search is not None and baselines_only:
        raise SpecError("search: baselines have no recipe to search for")
    if epochs is not None and not baselines_only:
        overrides = [*overrides, f"training.epochs={epochs}"]
    settings = load_recipe(recipe, overrides)
    home_zoo, *other_zoos = map(_opened, (zoo, *transfer_to))
    for other in other_zoos:
        check_same_layers(home_zoo, other)
    out = out or default_out(home_zoo, str(search or recipe))
    home = ZooDataset.of(home_zoo, settings)
    targets, excluded = home.choose()
    others = [ZooDataset.of(other, settings).as_transfer(home, targets) for other in other_zoos]
    for index, checkpoints in enumerate(others):
        if checkpoints.name in [earlier.name for earlier in (home, *others[:index])]:
            checkpoints.name += f" ({index + 2})"  # two zoos of one specification
    notes = [note for checkpoints in (home, *others) for note in checkpoints.notes]
    if missing := Umap.missing(len(home.splits["train"])):
        excluded[Umap.name] = missing
    if search is not None:
        training_data(home_zoo, settings)  # says what it lacks before anything is searched
        best, how = search_recipes(home, recipe, Path(search), out, overrides=overrides, address=address, quiet=quiet)
        settings, overrides, out = best.recipe, [*overrides, *best.changes], out / f"trial-{best.number:05d}"
        notes.append(how)
    folders = [out / f"seed-{seed}" for seed in range(seeds)]
    _check_fitness(home_zoo, home, settings, out, folders, trains=not baselines_only, here=engine == "local")
    run = Scorer(home, others, targets, excluded)

    def note(text: str) -> None:
        if not quiet:
            say(text, err=True)

    encoders: list[Encoder] = []
    if engine == "ray" and not baselines_only:
        encoders = train_encoders(home_zoo, settings, folders, address=address, quiet=quiet)

    def train(seed: int) -> Encoder:
        if encoders:
            return encoders[seed]
        return train_encoder(home_zoo, settings, folders[seed], seed, quiet=quiet, track=track)

    for method in _methods(home, settings, seeds, None if baselines_only else train, excluded):
        begun = time.monotonic()
        run.score(method)
        note(f"{method.name}, seed {method.seed}: probed in {time.monotonic() - begun:.1f} s")
    label = " ".join([Path(recipe).stem, *overrides])
    results = Results.of(run.rows, home.name, label, home.counts, notes, excluded)
    results.save(out / ("baselines.parquet" if baselines_only else "results.parquet"))
    return results


def _check_fitness(
    zoo: Zoo, home: ZooDataset, recipe: Recipe, out: Path, folders: Sequence[Path], trains: bool, here: bool
) -> None:
    """Refuse, before anything is computed, an encoder that does not fit into memory and folders that cannot be used."""
    check_memory(home.schema, recipe, len(home.splits["train"]), training=trains and here)
    above = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{above}: {'is not writable' if above.is_dir() else 'is not a folder'}; use another --out")
    if trains and any(folder.exists() for folder in folders):
        check_folders(Weights.of(zoo, recipe, quiet=True), recipe, folders)


def default_out(zoo: Zoo, recipe: str) -> Path:
    """Return the folder where the encoders of a zoo and a recipe go unless told otherwise."""
    return Path("representations") / Path(zoo.name).name / Path(recipe).stem


def embed(zoo: Zoo | str | Path, encoder: Encoder | str | Path | None = None) -> Tensor:
    """Return the representations of all checkpoints of a zoo, float32 ``[checkpoints, L]``, in the order of metadata.

    Args:
        zoo: the zoo, its folder, or its name.
        encoder: the encoder, its folder, or its name; by default the recipe ``default`` trained on this zoo, which
            `represent` may have done already.
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
    """Yield every method, fitted; those that depend on no seed once, the others once per seed.

    What cannot be fitted is added to ``excluded``, with the reason.
    """
    weights = home.splits["train"].weights
    for seed in range(seeds):
        for baseline in baselines(recipe.encoder.latent, len(weights), seed):
            if seed == 0 or baseline.seeded:
                try:
                    baseline.fit(weights, home.schema)
                except UnfitError as error:
                    excluded[baseline.name] = str(error)
                else:
                    yield Method(baseline.name, baseline.embed, seed, baseline.fitted_on)
        with torch.random.fork_rng(devices=[]), memory_named(home.schema, recipe, len(weights), training=False):
            torch.manual_seed(seed)
            untrained = Encoder.build(home.schema, recipe.encoder)
        yield Method("untrained", untrained.embed, seed)
        if train is not None:
            encoder = train(seed)
            rec = None if recipe.loss.kind == "Ec" else partial(reconstruction_r2, encoder, recipe=recipe)
            yield Method(recipe.loss.kind, encoder.embed, seed, len(weights), rec)
