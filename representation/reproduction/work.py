"""One job with one seed: compute the scores of baselines, variances, or an encoder, and store them.

The result is a JSON file in ``results/``. It has the hashes of the zoos' manifests and the recipe, so that a job is
repeated if, and only if, a zoo or the recipe changed.
"""

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from representation.dataset import Note, ZooDataset, takes
from representation.errors import PlacedError
from representation.evaluation.baselines import Umap, baselines
from representation.evaluation.results import Score
from representation.evaluation.scoring import Method, Scorer
from representation.recipes import Recipe, RecipeIdentity
from representation.reproduction.faults import misread, train_misread, with_running_gap
from representation.reproduction.items import BASELINES, GAP_LOSSES, VARIANCES, Job
from representation.reproduction.scales import Scale, StandIn
from representation.reproduction.variations import UNTRANSPOSED
from representation.training.folder import TrainingFolder
from representation.training.start import best_linear_code
from representation.training.train import train_encoder
from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import write_durably
from zootools.hashing import canonical_json, pretty_json
from zootools.open import open_zoo
from zootools.spec import load_spec
from zootools.spec.sections import Section
from zootools.zoo import Zoo

WEIGHTS_AND_STATISTICS = ("W", "s(W)")
"""The baselines of all tables but Table 5, which is about the TETRIS zoos."""


class ResultIdentity(Section):
    """Everything that decides the result of a job."""

    zoos: dict[str, str]
    """Hash of the manifest of every zoo that is scored on, by the zoo's name."""
    recipe: RecipeIdentity
    seed: int


class JobResult(Section):
    """The content of a result file."""

    job: str
    identity: ResultIdentity
    seconds: float
    """Wall time of the last session."""
    cpu_seconds: float
    """Processor time; of an encoder that was trained in several sessions, with the steps that they saved."""
    machine: str
    """Processor, cores and GPU of the machine that did it."""
    rows: tuple[Score, ...]
    excluded: dict[str, str]
    """Targets and methods without scores, and why."""
    notes: tuple[Note, ...]
    counts: dict[str, int]
    """Models and checkpoints by split; of the variances, the number of groups."""


@dataclass(frozen=True)
class Workspace:
    """The folder of a reproduction, and its scale."""

    out: Path
    scale: Scale

    @classmethod
    def at(cls, out: Path | None, scale: Scale) -> "Workspace":
        """Return that of a folder; ``reproduction/<scale>`` by default."""
        return cls(out or Path("reproduction") / scale.name, scale)

    def zoo(self, name: str) -> Path:
        """Return the folder of a zoo."""
        return self.out / "zoos" / name

    def is_built(self, zoo: str) -> bool:
        """Return whether a zoo is finished."""
        return (self.zoo(zoo) / "zoo.json").exists()

    def stand_in(self, zoo: str, data: Path | None) -> StandIn | None:
        """Return what takes the place of a zoo's images: in the zoo that is built, or else if it were built now."""
        if not self.is_built(zoo):
            return self.scale.stand_in(zoo, data)
        images = self.scale.spec(zoo).images.name
        used = load_spec(self.zoo(zoo) / "spec.yaml").images.name
        return self.scale.stand_ins.get(images) if used != images else None

    def open(self, zoo: str) -> Zoo:
        """Open a zoo, with the properties that are scored."""
        opened = open_zoo(self.zoo(zoo))
        return with_running_gap(opened) if zoo in GAP_LOSSES else opened

    def digest(self, zoo: str) -> str:
        """Return the sha256 of a zoo's manifest, zoo.json."""
        return hashlib.sha256((self.zoo(zoo) / "zoo.json").read_bytes()).hexdigest()

    def encoder(self, job: Job, seed: int) -> Path:
        """Return the folder of an encoder; its name depends on the recipe and on the zoo."""
        decisive = {**self.identity(job, seed, ()).dump(), "seed": None}
        digest = hashlib.sha256(canonical_json(decisive).encode()).hexdigest()
        return self.out / "encoders" / f"{job.name}-{digest[:8]}" / f"seed-{seed}"

    def is_trained(self, job: Job, seed: int) -> bool:
        """Return whether the encoder of a job is trained; its zoo must be built."""
        return TrainingFolder(self.encoder(job, seed)).record.exists()

    def result(self, job: Job, seed: int) -> Path:
        """Return the file of a job's result."""
        return self.out / "results" / f"{job.name}-seed-{seed}.json"

    def picture(self, item: str) -> Path:
        """Return the file of a picture."""
        return self.out / "reproduction" / f"{item}.png"

    def identity(self, job: Job, seed: int, others: Sequence[str]) -> ResultIdentity:
        """Return the identity of a result; ``others`` are the zoos that scores are transferred to."""
        digests = {name: self.digest(name) for name in (job.zoo, *others)}
        return ResultIdentity(zoos=digests, recipe=self.scale.recipe_of(job), seed=seed)

    def stored(self, job: Job, seed: int) -> JobResult | None:
        """Return the stored result of a job, or None. Raises DamagedZooError for a file that is not a result."""
        path = self.result(job, seed)
        if not path.exists():
            return None
        try:
            return JobResult.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DamagedZooError(f"{path}: not the result of a job ({error}); remove it") from error

    def found(self, job: Job, seed: int, others: Sequence[str] = ()) -> JobResult | None:
        """Return the stored result if its zoos (at least these) and its recipe are still the same, else None.

        Raises DamagedZooError as `stored`.
        """
        result = self.stored(job, seed)
        if result is None:
            return None
        stored, wanted = result.identity, self.identity(job, seed, others)
        same = wanted.zoos.items() <= stored.zoos.items()
        return result if same and (stored.recipe, stored.seed) == (wanted.recipe, wanted.seed) else None


def machine() -> str:
    """Return processor, cores and GPU of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {name}{gpu}"


def do(workspace: Workspace, job: Job, seed: int, others: Sequence[str]) -> str:
    """Do a job and write its result; return the reason why there is none, or an empty string.

    ``others`` are the zoos to transfer to.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    identity = workspace.identity(job, seed, others)
    recipe, earlier = workspace.scale.recipe_of(job), 0.0
    try:
        if job.learns:
            earlier = TrainingFolder(workspace.encoder(job, seed)).cpu_seconds()
        found = (
            _variances(workspace, job, recipe)
            if job.method == VARIANCES
            else _scores(workspace, job, seed, others, recipe)
        )
    except PlacedError as error:
        folder, out = error.folder, workspace.out
        return f"{folder.relative_to(out) if folder.is_relative_to(out) else folder}: {error.reason}"
    except SpecError as error:
        return str(error)
    result = JobResult(
        job=job.name,
        identity=identity,
        seconds=time.perf_counter() - begun,
        cpu_seconds=earlier + time.process_time() - cpu,
        machine=machine(),
        rows=found.rows,
        excluded=found.excluded,
        notes=found.notes,
        counts=found.counts,
    )
    write_durably(workspace.result(job, seed), pretty_json(result.dump()))
    return ""


class _Found(NamedTuple):
    """Fields of a `JobResult`."""

    rows: tuple[Score, ...]
    excluded: dict[str, str]
    notes: tuple[Note, ...]
    counts: dict[str, int]


def _scores(workspace: Workspace, job: Job, seed: int, others: Sequence[str], recipe: Recipe) -> _Found:
    home_zoo, *other_zoos = [workspace.open(name) for name in (job.zoo, *others)]
    home = ZooDataset.of(home_zoo, recipe)
    if job.variation == UNTRANSPOSED:
        home = misread(home)
    targets, excluded = home.choose()
    away = [ZooDataset.of(zoo, recipe).as_transfer(home, targets) for zoo in other_zoos]
    scorer = Scorer(home, away, targets, excluded, probes=("paper",))
    for method in methods(workspace, job, seed, recipe, home_zoo, home):
        scorer.score(method)
    if job.method == BASELINES and (missing := Umap.missing(len(home.splits["train"]))):
        excluded[Umap.name] = missing
    rows = [score for score in scorer.scores if score.split == "test" or score.target == "reconstruction"]
    notes = [note for dataset in (home, *away) for note in dataset.notes]
    notes += [Note(zoo=home.name, text=text.removeprefix(f"{home.name}: ")) for text in scorer.notes]
    return _Found(tuple(rows), excluded, tuple(notes), home.counts)


def methods(workspace: Workspace, job: Job, seed: int, recipe: Recipe, zoo: Zoo, home: ZooDataset) -> list[Method]:
    """Return the fitted methods of a job: the baselines that the paper has for this zoo, or the trained encoder.

    Beside an encoder that reconstructs is the best linear code of the same length.
    """
    weights = home.splits["train"].weights
    if not job.learns:
        latent = recipe.sized(home.schema.size).encoder.length
        every = [
            b for b in baselines(latent, len(weights), seed) if "tetris" in job.zoo or b.name in WEIGHTS_AND_STATISTICS
        ]
        return [Method.fitted(baseline, weights, home.schema, seed) for baseline in every]
    out = workspace.encoder(job, seed)
    if job.variation == UNTRANSPOSED:
        encoder = train_misread(zoo, recipe, out, seed)
    else:
        encoder = train_encoder(zoo, recipe, out, seed, quiet=True)
    found = [Method.of_encoder(encoder, recipe, seed, len(weights))]
    if recipe.loss.reconstructs and (code := best_linear_code(home.schema, recipe, weights)):
        found.append(Method.of_linear_code(code, home.schema, recipe, len(weights)))
    return found


def _variances(workspace: Workspace, job: Job, recipe: Recipe) -> _Found:
    """Return VAR and VARc of Table 4.

    VAR is the variance of each weight over all checkpoints, averaged over the weights: in the paper it is lower within
    groups if the seed is fixed, which would not hold for the variance over the weights of one model. VARc is its mean
    over the groups of one initialisation and activation, each with the same weight.
    """
    zoo = recipe.epochs.select(open_zoo(workspace.zoo(job.zoo)))
    weights = zoo.weights()
    taken, reason = takes(recipe, weights)
    if not taken.any():
        raise SpecError(f"{zoo.name}: all {len(weights)} checkpoints are left out: {reason}")
    groups: dict[tuple[str, str], list[int]] = {}
    names = zip(zoo.metadata["init"].to_pylist(), zoo.metadata["activation"].to_pylist(), strict=True)
    for row, group in enumerate(names):
        if taken[row]:
            groups.setdefault(group, []).append(row)
    within = sum(_variance(weights[rows]) for rows in groups.values()) / len(groups)
    values = {"variance": _variance(weights[taken]), "variance_within": within}
    score = partial(Score, method=VARIANCES, seed=0, split="all", evaluated_on=zoo.name, metric="variance")
    rows = tuple(score(target=name, value=value, rows=int(taken.sum())) for name, value in values.items())
    return _Found(rows, {}, (), {"groups": len(groups)})


def _variance(weights: Tensor) -> float:
    return float(weights.double().var(dim=0, correction=0).mean())
