"""Scores of baselines in the user's cache, so that the same baseline of the same data is computed once.

A file holds the scores of one baseline. Its name is the hash of everything that decides them: the weights and
properties that are scored, the baseline, its seed, the code that computes them, and the versions of the packages that
it calls. A file that is not what was written is not used.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from representation.evaluation.baselines import Baseline, UnfitError
from representation.evaluation.results import Score
from representation.evaluation.scoring import Method, Scorer, Seconds
from zootools.errors import DamagedZooError, StorageError
from zootools.filesystem.files import write_durably
from zootools.hashing import canonical_json, pretty_json
from zootools.paths import cache_folder
from zootools.spec.sections import Section
from zootools.storage.hashed_json import add_hash, read_hashed

CODE = (
    *("evaluation/baselines.py", "evaluation/probes.py", "evaluation/scoring.py"),
    *("dataset.py", "networks.py", "targets.py"),
)
"""The modules of this package that compute the scores of a baseline."""
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "umap-learn", "pynndescent", "numba")


class BaselineIdentity(Section):
    """Everything that decides the scores of a baseline."""

    data: str
    """Hash of the weights and properties that are scored (`Scorer.digest`)."""
    code: str
    """Hash of the modules `CODE`."""
    packages: dict[str, str]
    """Versions of `PACKAGES`, of those that are installed."""
    method: str
    components: int | None
    """Components of PCA and UMAP."""
    seed: int


class StoredScores(Section):
    """The content of a file of the cache."""

    identity: BaselineIdentity
    scores: tuple[Score, ...]
    excluded: dict[str, str]
    """What has no scores, and why."""
    seconds: tuple[float, float, float] | None
    """Processor seconds that it took (`Seconds`); None for a baseline that cannot be fitted."""


class Scored(NamedTuple):
    """What was added to the scores for one baseline."""

    scores: tuple[Score, ...]
    seconds: Seconds | None
    """None for a baseline that cannot be fitted."""
    stored: bool
    """Whether the scores were in the cache."""


class BaselineScores:
    """Scores baselines for a `Scorer`, or takes their scores from the cache."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.folder = scorer, cache_folder() / "baselines"
        self.notes: list[str] = []
        """Remarks on files of the cache that could not be used or written."""

    def score(self, baseline: Baseline) -> Scored:
        """Add the scores of a baseline to those of the scorer; it is fitted only if the cache does not have them."""
        identity = BaselineIdentity(
            data=self.scorer.digest,
            code=self._code,
            packages=self._packages,
            method=baseline.name,
            components=getattr(baseline, "components", None),
            seed=getattr(baseline, "seed", 0),
        )
        name = hashlib.sha256(canonical_json(identity.model_dump()).encode()).hexdigest()[:32] + ".json"
        stored = self._read(name, identity)
        found = stored or self._compute(baseline, identity)
        if stored is None:
            self._write(name, found)
        self.scorer.scores += found.scores
        self.scorer.excluded |= found.excluded
        return Scored(found.scores, Seconds(*found.seconds) if found.seconds else None, stored is not None)

    def _compute(self, baseline: Baseline, identity: BaselineIdentity) -> StoredScores:
        alone, home = replace(self.scorer, scores=[], excluded={}), self.scorer.home
        seconds: Seconds | None = None
        try:
            method = Method.fitted(baseline, home.splits["train"].networks, home.schema, identity.seed)
        except UnfitError as error:
            alone.excluded[baseline.name] = str(error)
        else:
            seconds = alone.score(method)
        return StoredScores(identity=identity, scores=tuple(alone.scores), excluded=alone.excluded, seconds=seconds)

    def _read(self, name: str, identity: BaselineIdentity) -> StoredScores | None:
        try:
            value = read_hashed(self.folder, name)
            del value["sha256"]
            found = StoredScores.model_validate_json(canonical_json(value))
        except FileNotFoundError:
            return None
        except (DamagedZooError, ValidationError, OSError):
            found = None
        if found is None or found.identity != identity:
            self.notes.append(f"{self.folder / name}: not the scores of {identity.method}; they were computed again")
            return None
        return found

    def _write(self, name: str, scores: StoredScores) -> None:
        try:
            write_durably(self.folder / name, pretty_json(add_hash(scores.model_dump(mode="json"))), self.folder)
        except StorageError as error:
            self.notes.append(f"the scores of {scores.identity.method} are not kept for the next call: {error}")

    @cached_property
    def _code(self) -> str:
        package = Path(__file__).parents[1]
        return hashlib.sha256(b"".join((package / name).read_bytes() for name in CODE)).hexdigest()

    @cached_property
    def _packages(self) -> dict[str, str]:
        return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
