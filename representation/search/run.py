"""A search over recipes: the best one for a zoo by what its encoders score on the validation split.

Every trial trains an encoder with seed 0 and is scored after each epoch; what is hopeless is stopped early. What is
drawn and every score follow from space, recipe and zoo. Which trials are stopped depends on who comes first where
several run at once.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from representation.dataset import ZooDataset
from representation.evaluation.results import SCHEMA
from representation.recipes import load_recipe
from representation.search.space import Space, Trial, load_search
from representation.search.trials import TrialInputs, TrialResult, run_trials
from representation.training.distributed import packed
from representation.training.train import Weights, check_identity
from zootools.errors import ClusterError, DamagedZooError, SpecError, did_you_mean
from zootools.filesystem.files import FolderLock, durable_path, write_durably
from zootools.hashing import pretty_json

COLUMNS = pa.schema(
    [
        *SCHEMA,
        ("trial", pa.int64()),
        ("changes", pa.string()),  # of the recipe that the search began with
        ("epochs", pa.int64()),  # trained
        ("outcome", pa.string()),  # finished, stopped (early), diverged
        ("objective", pa.float64()),  # the mean of the trial's values
    ]
)
"""The columns of ``search.parquet``: one row per score as in the results, and the trial that it is of. A trial that
diverged has one row without a value."""


def search_recipes(
    home: ZooDataset,
    recipe: str,
    space: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    quiet: bool = False,
) -> tuple[Trial, str]:
    """Find the best recipe of a search space for a zoo; return its trial, and in words how it was found.

    ``out`` gets ``best.yaml``, the recipe; ``search.parquet``, the scores of all trials (`COLUMNS`); and
    ``search.json``, from which the same call goes on after an interruption: a trial that has ended is not run again.
    More ``trials`` are added to those that are there.

    Raises SpecError when the space does not fit the recipe or the zoo, or when ``out`` holds another search;
    WorkerError when the workers of a trial die again and again.
    """
    if find_spec("ray") is None:
        raise ClusterError("--search needs the package ray, which is not installed: pip install 'zootools[ray]'")
    settings, trials = load_search(space, recipe, overrides)
    # Nothing below sees the test split.
    home = replace(home, splits={split: home.splits[split] for split in ("train", "validation")})
    targets = _targets(home, settings, space)
    weights = Weights(home.name, home.schema, home.splits["train"].weights, home.splits["validation"].weights)
    identity = weights.identity(load_recipe(recipe, overrides), seed=0)
    identity["search"] = {key: value for key, value in settings.dump().items() if key != "trials"}
    with FolderLock(out / ".work" / "lock"):
        ended = _read(out / "search.json", identity)
        if any(trial.number not in ended for trial in trials):

            def keep(number: int, trained: TrialResult) -> None:
                ended[number] = trained
                found = {str(number): asdict(ended[number]) for number in sorted(ended)}
                write_durably(out / "search.json", pretty_json({"identity": identity, "trials": found}))

            properties = {split: part.targets for split, part in home.splits.items()}
            run_trials(
                TrialInputs(packed(weights), properties, targets, settings, trials, dict(ended)), keep, address, quiet
            )
        best = max(trials, key=lambda trial: _merit(ended[trial.number]))
        if not ended[best.number].scores:
            raise SpecError(f"{space}: all {len(trials)} trials diverged; use smaller values of training.lr")
        _write_table(
            out / "search.parquet", home.name, " ".join([Path(recipe).stem, *overrides]), trials, ended, settings
        )
        reached = settings.objective.sign * ended[best.number].curve[-1]
        how = f"trial {best.number} of {space.name} ({' '.join(best.changes)}): {settings.objective.text} {reached:.4g}"
        chosen = best.recipe.model_copy(update={"description": how})
        write_durably(out / "best.yaml", yaml.safe_dump(chosen.dump(), sort_keys=False, width=100).encode())
        shutil.rmtree(out / ".work")
    outcomes = Counter(ended[trial.number].outcome for trial in trials)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("finished", "stopped", "diverged"))
    return best, f"{how} on the validation split; {len(trials)} trials: {counts}"


def _merit(ended: TrialResult) -> tuple[bool, float]:
    """Order trials: those that finished come before those that were stopped, which might not have kept a lead."""
    return ended.outcome == "finished", ended.curve[-1]


def _targets(home: ZooDataset, space: Space, path: Path) -> list[str]:
    """Return the properties that the objective probes for. Raises SpecError for one that cannot be."""
    if space.objective.score != "probes":
        return []
    unfit: dict[str, str] = {}
    for split, part in home.splits.items():
        for name, target in part.targets.items():
            reason = "no number" if target.classes else target.unfit()
            if reason:
                unfit.setdefault(name, f"{reason} in the {split} split")
    numbers = [name for name in home.splits["train"].targets if name not in unfit]
    for name in space.objective.targets or ():
        if name not in numbers:
            reason = f"{name}: {unfit[name]}" if name in unfit else f"found {name!r}{did_you_mean(name, numbers)}"
            raise SpecError(f"{path}: objective.targets: {reason}")
    if not numbers:
        raise SpecError(f"{path}: {home.name} has no property to probe for; use the objective score 'reconstruction'")
    return list(space.objective.targets or numbers)


def _read(record: Path, identity: dict[str, Any]) -> dict[int, TrialResult]:
    """Return the trials that have ended, by number. Raises SpecError when they are of another search."""
    try:
        found = json.loads(record.read_bytes())
        check_identity(record.parent, "search", found["identity"], identity)
        return {int(number): TrialResult(**trial) for number, trial in found["trials"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedZooError(f"{record}: is no record of a search ({error})") from error


def _write_table(
    path: Path, zoo: str, label: str, trials: Sequence[Trial], ended: dict[int, TrialResult], space: Space
) -> None:
    rows = []
    for trial in trials:
        trained, changes = ended[trial.number], " ".join(trial.changes)
        about = {
            "zoo": zoo,
            "recipe": f"{label} {changes}",
            "trial": trial.number,
            "changes": changes,
            "epochs": len(trained.curve),
            "outcome": trained.outcome,
            "objective": space.objective.sign * trained.curve[-1] if trained.scores else None,
        }
        rows += [about | score for score in trained.scores or [{}]]
    with durable_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), temporary)
