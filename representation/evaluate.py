"""Methods x targets x probes: how much of each model's story is in a representation, and in the baselines.

>>> from representation import represent
>>> results = represent("zoos/digits_hyp", "default", baselines_only=True)
>>> print(results.render())
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from representation.augment import Augmenter
from representation.baselines import Umap, UnfitError, baselines
from representation.checkpoints import Checkpoints, check_same_layers
from representation.encoders import Encoder
from representation.memory import check_memory, memory_named
from representation.probes import accuracy, fit_ridge, fit_softmax_adam, fit_softmax_lbfgs, kendall_tau, r2
from representation.recipes import Augmentation, Recipe, load_recipe
from representation.results import Results
from representation.targets import Target
from representation.train import Weights, check_folders, train_encoder, training_data
from zootools.errors import SpecError, StorageError, did_you_mean
from zootools.extras import optional
from zootools.open import open_zoo
from zootools.text import say
from zootools.zoo import Zoo

PROBES = ("paper", "standardised")
ENGINES = ("local", "ray")
MAX_SOLVE = 20_000
"""Rows or features, whichever are fewer, up to which a ridge regression is solved: beyond, it would take hours."""


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
        engine: ``local``, or ``ray`` to train the encoders at once on a Ray cluster (`representation.distributed`).
        address: of the cluster; by default one is started on this machine.
        search: a search space, whose best recipe is searched for first, on Ray, and then represented
            (`representation.search`); ``out`` is then ``representations/<zoo>/<space>`` by default, and encoders and
            results go into a folder in it that is named after the best trial.
        track: log the training to this trackio project.
        quiet: say nothing on stderr.

    Raises SpecError for zoos that cannot be probed: without models in the training or the test split, without a
    property that varies, or of another layer schema than the first.
    """
    if engine not in ENGINES:
        raise SpecError(f"engine: found {engine!r}{did_you_mean(engine, ENGINES)}")
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
    home = Checkpoints.of(home_zoo, settings)
    targets, excluded = home.choose()
    others = [Checkpoints.of(other, settings).as_transfer(home, targets) for other in other_zoos]
    for index, checkpoints in enumerate(others):
        if checkpoints.name in [earlier.name for earlier in (home, *others[:index])]:
            checkpoints.name += f" ({index + 2})"  # two zoos of one specification
    notes = [note for checkpoints in (home, *others) for note in checkpoints.notes]
    if missing := Umap.missing(len(home.parts["train"])):
        excluded[Umap.name] = missing
    if search is not None:
        from representation.search import search_recipes

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
        from representation.distributed import train_encoders

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
    zoo: Zoo, home: Checkpoints, recipe: Recipe, out: Path, folders: Sequence[Path], trains: bool, here: bool
) -> None:
    """Refuse, before anything is computed, an encoder that does not fit into memory and folders that cannot be used."""
    check_memory(home.schema, recipe, len(home.parts["train"]), training=trains and here)
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


# --- the methods ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way from weights to features, fitted to the training split of the zoo."""

    name: str
    embed: Callable[[Tensor], Tensor]
    seed: int = 0
    fitted_on: int | None = None
    """Training checkpoints it was fitted on; None where there is nothing to fit."""
    reconstruction: Callable[[Tensor], float] | None = None
    """The R2 of the reconstruction of weights, where there is a decoder to make one."""


def _methods(
    home: Checkpoints,
    recipe: Recipe,
    seeds: int,
    train: Callable[[int], Encoder] | None,
    excluded: dict[str, str],
) -> Iterator[Method]:
    """Yield every method, fitted; those that depend on no seed once, the others once per seed.

    What cannot be fitted is added to ``excluded``, with the reason.
    """
    weights = home.parts["train"].weights
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


def reconstruction_r2(encoder: Encoder, weights: Tensor, recipe: Recipe, seed: int = 0) -> float:
    """Return the R2 of reconstructed weights over the whole vector, "Rec" in the paper's tables.

    As there, each network is permuted at random if the recipe permutes, but neither erased nor made noisy, and the
    error is compared with that of the mean of each weight over these networks.
    """
    settings = Augmentation(permute=recipe.augmentation.permute, erase_probability=0.0)
    views = Augmenter(encoder.schema, settings).views(weights, torch.Generator().manual_seed(seed), copies=1).clean
    error = (views - encoder.reconstruct(views)).square().sum(dtype=torch.float64)
    return float(1 - error / (views - views.mean(dim=0)).square().sum(dtype=torch.float64))


def validation_scores(home: Checkpoints, targets: list[str], encoder: Encoder, name: str) -> list[dict[str, Any]]:
    """Return the R2 of the paper's probe on the validation split for numeric targets, as rows of the results.

    Only the splits of ``home`` are looked at; there are no rows when the features are not finite.
    """
    run = Scorer(home, [], targets, {}, probes=("paper",))
    run.score(Method(name, encoder.embed, fitted_on=len(home.parts["train"])))
    return [row for row in run.rows if row["split"] == "validation"]


# --- the scores -----------------------------------------------------------------------------------------------


@dataclass
class Scorer:
    """Scores methods one after the other, and gathers the rows of the results."""

    home: Checkpoints
    others: list[Checkpoints]
    targets: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why; methods are added."""
    probes: Sequence[str] = PROBES
    rows: list[dict[str, Any]] = field(default_factory=list)

    def score(self, method: Method) -> None:
        """Fit the probes for every target on a method's features, and score them on every split and zoo."""
        places = [
            (zoo.name, split, part)
            for zoo in (self.home, *self.others)
            for split, part in zoo.parts.items()
            if len(part)
        ]
        try:
            features = [method.embed(part.weights) for _, _, part in places]
        except UnfitError as error:
            self.excluded[method.name] = str(error)
            return
        if not all(values.isfinite().all() for values in features):
            self.excluded[method.name] = "its features are not finite"
            return
        if min(features[0].shape) > MAX_SOLVE:
            self.excluded[method.name] = f"{len(features[0])} checkpoints x {features[0].shape[1]} features: too large"
            return
        about = {"method": method.name, "seed": method.seed, "fitted_on": method.fitted_on}
        at_home = dict(zip((split for split, part in self.home.parts.items() if len(part)), features, strict=False))
        for probe in self.probes:
            for names in self._groups():
                alphas, predict = self._fit(probe, names, at_home, method.seed)
                for (zoo, split, part), values in zip(places, features, strict=True):
                    where = {"evaluated_on": zoo, "split": split, "probe": probe}
                    predicted = predict(values)
                    for index, name in enumerate(names):
                        if not predicted[:, index].isfinite().all():
                            self.excluded[f"{method.name}, {probe} probe of {name}"] = "its numbers overflow"
                        elif name in part.targets:
                            scores = _scores(part.targets[name], predicted[:, index], rank=split == "test")
                            more = {"target": name, "alpha": alphas[index]}
                            self.rows += [about | where | more | score for score in scores]
        if method.reconstruction is not None:
            for zoo, split, part in places:
                where = {"evaluated_on": zoo, "split": split, "target": "reconstruction", "metric": "r2"}
                value = method.reconstruction(part.weights)
                self.rows.append(about | where | {"value": value, "rows": len(part)})

    def _groups(self) -> list[list[str]]:
        """Return the targets that can be fitted together: of one kind, and known in the same rows."""
        groups: dict[Any, list[str]] = {}
        for name in self.targets:
            targets = [part.targets[name] for part in self.home.parts.values()]
            key = (bool(targets[0].classes), *(target.known.numpy().tobytes() for target in targets))
            groups.setdefault(key, []).append(name)
        return list(groups.values())

    def _fit(
        self, probe: str, names: list[str], features: Mapping[str, Tensor], seed: int
    ) -> tuple[Sequence[float | None], Callable[[Tensor], Tensor]]:
        """Fit one probe for some targets: the chosen penalties, and features -> predictions ``[rows, targets]``."""

        def sample(split: str) -> tuple[Tensor, Tensor]:
            targets = [self.home.parts[split].targets[name] for name in names]
            known, values = targets[0].known, torch.stack([target.values for target in targets], dim=1)
            here = features.get(split, features["train"][:0])
            return (here, values) if known.all() else (here[known], values[known])

        train, validation = sample("train"), sample("validation")
        classes = [len(self.home.parts["train"].targets[name].classes) for name in names]
        if not classes[0]:
            ridge = fit_ridge(train, validation, standardise=probe == "standardised")
            return ridge.alphas, ridge
        labelled = [(values, labels.long()) for values, labels in (train, validation)]
        if probe == "paper":
            softmax = fit_softmax_adam(*labelled[0], classes, seed=seed)
        else:
            softmax = fit_softmax_lbfgs(labelled[0], labelled[1], classes)
        # Nothing is most likely where the layer's own numbers overflowed, as on features of 1e30.
        failed = ~softmax.weights.unflatten(1, (len(names), -1)).isfinite().all(dim=2).all(dim=0)

        def predict(rows: Tensor) -> Tensor:
            return softmax.classes(rows, len(names)).double().masked_fill(failed, torch.nan)

        return softmax.alphas or [None] * len(names), predict


def _scores(target: Target, predicted: Tensor, rank: bool) -> Iterator[dict[str, Any]]:
    truth, predicted = target.values[target.known], predicted[target.known]
    if target.classes:
        yield {"metric": "accuracy", "value": accuracy(truth, predicted), "rows": len(truth)}
        return
    yield {"metric": "r2", "value": r2(truth, predicted), "rows": len(truth)}
    if rank:
        yield {"metric": "kendall_tau", "value": kendall_tau(truth, predicted), "rows": len(truth)}
