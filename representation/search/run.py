"""A search over recipes: the best one for a zoo by the scores of its encoders on the validation split.

Every trial trains an encoder with seed 0, which is scored after each epoch; bad trials are stopped early. The drawn
recipes and every score follow from space, recipe and zoo. Where several trials run at once, their order in time decides
which are stopped.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue, ValidationError

from representation.dataset import ZooDataset
from representation.evaluation.results import SCHEMA
from representation.recipes import load_recipe
from representation.search.space import Space, Trial, load_search
from representation.search.trials import TrialInputs, TrialResult, run_trials
from representation.training.distributed import packed
from representation.training.folder import TrainingIdentity, check_identity
from representation.training.train import Weights
from zootools.errors import ClusterError, DamagedZooError, SpecError, did_you_mean
from zootools.filesystem.files import durable_path, write_durably
from zootools.filesystem.lock import FolderLock
from zootools.hashing import pretty_json
from zootools.spec.sections import Section

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
"""The columns of ``search.parquet``: those of the results, and the trial of the score. A trial that diverged has one
row without a value."""


class SearchIdentity(TrainingIdentity):
    """Everything that decides a search, but for the number of its trials; the recipe is the one it begins with."""

    search: dict[str, JsonValue]
    """The search space without ``trials``: more of them can be added."""


class SearchRecord(Section):
    """The content of search.json."""

    identity: SearchIdentity
    trials: dict[int, TrialResult]
    """The trials that have ended, by number."""


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
    """Find the best recipe of a search space for a zoo; return its trial, and a sentence about it for readers.

    Writes to ``out``: ``best.yaml``, the recipe; ``search.parquet``, the scores of all trials (`COLUMNS`); and
    ``search.json``, from which the same call resumes after an interruption: a trial that has ended is not run again.
    If the space asks for more ``trials`` than are recorded there, only the new ones are run.

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
    identity = SearchIdentity(
        **dict(weights.identity(load_recipe(recipe, overrides), seed=0)),
        search=settings.model_dump(mode="json", exclude_defaults=True, exclude={"trials"}),
    )
    label = " ".join([Path(recipe).stem, *overrides])
    with FolderLock(out / ".work" / "lock"):
        ended = _read(out / "search.json", identity)

        def keep(number: int, result: TrialResult) -> None:
            ended[number] = result
            record = SearchRecord(identity=identity, trials={key: ended[key] for key in sorted(ended)})
            write_durably(out / "search.json", pretty_json(record.dump()))

        if any(trial.number not in ended for trial in trials):
            properties = {split: part.targets for split, part in home.splits.items()}
            inputs = TrialInputs(packed(weights), properties, targets, settings, trials, dict(ended))
            run_trials(inputs, keep, address, quiet)
        best = max(trials, key=lambda trial: _merit(ended[trial.number]))
        if not ended[best.number].scores:
            raise SpecError(f"{space}: all {len(trials)} trials diverged; use smaller values of training.lr")
        _write_table(out / "search.parquet", home.name, label, trials, ended, settings)
        reached = settings.objective.sign * ended[best.number].curve[-1]
        how = f"trial {best.number} of {space.name} ({' '.join(best.changes)}): {settings.objective.text} {reached:.4g}"
        chosen = best.recipe.model_copy(update={"description": how})
        write_durably(out / "best.yaml", yaml.safe_dump(chosen.dump(), sort_keys=False, width=100).encode())
        shutil.rmtree(out / ".work")
    outcomes = Counter(ended[trial.number].outcome for trial in trials)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("finished", "stopped", "diverged"))
    return best, f"{how} on the validation split; {len(trials)} trials: {counts}"


def _merit(ended: TrialResult) -> tuple[bool, float]:
    """Return the sort key of a trial. Finished trials rank above stopped ones, which might not have kept their lead."""
    return ended.outcome == "finished", ended.curve[-1]


def _targets(home: ZooDataset, space: Space, path: Path) -> list[str]:
    """Return the properties that the objective probes. Raises SpecError for one that cannot be probed."""
    if space.objective.score != "probes":
        return []
    unfit: dict[str, str] = {}
    for split, part in home.splits.items():
        for name, target in part.targets.items():
            reason = "not numeric" if target.classes else target.unfit()
            if reason:
                unfit.setdefault(name, f"{reason} in the {split} split")
    numbers = [name for name in home.splits["train"].targets if name not in unfit]
    for name in space.objective.targets or ():
        if name not in numbers:
            reason = f"{name}: {unfit[name]}" if name in unfit else f"found {name!r}{did_you_mean(name, numbers)}"
            raise SpecError(f"{path}: objective.targets: {reason}")
    if not numbers:
        raise SpecError(f"{path}: {home.name} has no property to probe; use the objective score 'reconstruction'")
    return list(space.objective.targets or numbers)


def _read(record: Path, identity: SearchIdentity) -> dict[int, TrialResult]:
    """Return the trials that have ended, by number. Raises SpecError when they are of another search."""
    try:
        found = SearchRecord.model_validate_json(record.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise DamagedZooError(f"{record}: not the record of a search ({error})") from error
    check_identity(record.parent, "search", found.identity, identity)
    return dict(found.trials)


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
        rows += [about | dict(score) for score in trained.scores] or [about]
    with durable_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), temporary)
