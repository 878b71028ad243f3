"""The files of a publication, checked before the first of them is sent."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import link_or_copy
from zootools.filesystem.inside import NotPlainError, open_inside
from zootools.hub.locate import locate
from zootools.object_store.urls import is_url
from zootools.percent import PercentProgress
from zootools.storage.build_state import ZooFolder, epoch_of
from zootools.storage.card import render_card
from zootools.storage.file_rules import check_file_names, check_sizes
from zootools.storage.finish import finish_zoo
from zootools.storage.manifest import Manifest, read_manifest
from zootools.storage.manifest_checks import stored_origin
from zootools.storage.part import require_whole
from zootools.storage.records import Plan, StackRecord
from zootools.storage.unhashed import read_unhashed
from zootools.storage.verified_files import FileInfo
from zootools.verify import faults
from zootools.zoo_name import ZooName

DEFAULT_HUB = "https://huggingface.co"
"""The Hub that zootools and `datasets` use unless they are set to another one."""
MAX_FILES = 10_000
MAX_FILES_PER_FOLDER = 1_000


@dataclass(frozen=True)
class Release:
    """The files of one publication: those of a zoo folder, with a card that names the repository."""

    name: ZooName
    folder: Path
    manifest: Manifest
    texts: dict[str, bytes]
    """The bytes of README.md (as it is published), zoo.json and build.json; all other files are taken from `folder`."""
    files: dict[str, FileInfo]
    """Size and sha256 by name, README.md included."""

    @property
    def card(self) -> bytes:
        """README.md as it is published."""
        return self.texts["README.md"]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(info.size for info in self.files.values())


@dataclass(frozen=True)
class Published:
    """The result of a publication."""

    commit: str
    where: str
    files: int
    size: int
    """Bytes of all files."""
    commits: int
    """The number of commits that were made; 0 where this version was already published."""
    name: ZooName
    """The name, with the branch if it is not main."""
    tag: str | None = None
    changes: tuple[str, ...] = ()
    """The changes that were made, in words; none where nothing was left to do."""

    @property
    def address(self) -> str:
        """The folder of the published version, or the address of its page on the Hub."""
        if not is_url(self.where):
            revision = self._revision
            return str(Path(self.where) / self.name.org / f"{self.name.name}{f'@{revision}' if revision else ''}")
        return f"{self.where}/datasets/{self.name.repo_id}" + (f"/tree/{self._revision}" if self._revision else "")

    @property
    def load(self) -> tuple[str, str]:
        """Two lines of Python that load this version: by zootools, and by `datasets`."""
        revision = f", revision={self._revision!r}" if self._revision else ""
        if not is_url(self.where):
            hub, data_set, pinned = f", hub={self.where!r}", self.address, ""
        else:
            hub, data_set, pinned = "", self.name.repo_id, revision
            if self.where != DEFAULT_HUB:
                hub = f", hub={self.where!r}"
        return (
            f"from zootools import open_zoo; zoo = open_zoo({self.name.repo_id!r}{revision}{hub})",
            f"from datasets import load_dataset; rows = load_dataset({data_set!r}{pinned})",
        )

    @property
    def _revision(self) -> str | None:
        return self.tag or (self.name.revision if self.name.revision != "main" else None)


@contextmanager
def prepare(zoo: str | Path, name: ZooName, allow_partial: bool = False, quiet: bool = True) -> Iterator[Release]:
    """A context that yields the release of a zoo under a name; every file has been verified.

    Unless ``quiet``, the progress of the verification is printed to stderr.

    Raises ZooNotFoundError for a folder without a zoo, SpecError for an unfinished zoo unless ``allow_partial``,
    DamagedZooError when a file is not what the manifest promises.
    """
    place = locate(zoo)
    require_whole(place.folder, "published")
    place.fetch_all()
    zoo = place.folder
    plan = ZooFolder(zoo).read_plan()
    if not allow_partial and (plan is not None or read_manifest(zoo).is_partial):
        raise SpecError(f"{zoo}: is not finished; finish it with zootools build, or publish it with --allow-partial")
    with nullcontext(zoo) if plan is None else _partial(zoo, plan) as folder:
        yield _release(folder, name, quiet)


@contextmanager
def _partial(zoo: Path, plan: Plan) -> Iterator[Path]:
    """A context that yields a temporary folder with the checkpoints of an unfinished zoo, as a zoo of its own."""
    records = []
    for stack in range(len(plan.stacks)):
        record = ZooFolder(zoo).read_record(stack) or StackRecord(fingerprint={})
        # A stack that is trained again may have shards of epochs that it has not reached yet.
        shards = {file: info for file, info in record.shards.items() if epoch_of(file) <= record.epoch}
        records.append(record.model_copy(update={"shards": shards}))
    if not any(record.shards for record in records):
        raise SpecError(f"{zoo}: has no checkpoints yet")
    with TemporaryDirectory(prefix=f".{zoo.name}-", dir=zoo.absolute().parent) as temporary:
        folder = Path(temporary)
        for file in [*(file for record in records for file in record.shards), "build.json"]:
            with suppress(FileNotFoundError, NotPlainError), open_inside(zoo, file) as opened:
                link_or_copy(opened, folder, file)
        finish_zoo(ZooFolder(folder), plan, records)
        yield folder


def _release(zoo: Path, name: ZooName, quiet: bool) -> Release:
    manifest = read_manifest(zoo)
    with PercentProgress(sum(info.size for info in manifest.files.values()), "verifying", quiet) as progress:
        # The card is rendered again, so a fault of the one in the folder does not matter.
        found = [str(fault) for fault in faults(zoo, progress.tick) if fault.name != "README.md"]
    if found:
        raise DamagedZooError(
            f"{zoo}: not published, because it has {len(found)} faults", *(f"  {fault}" for fault in found)
        )
    texts = {"README.md": render_card(manifest, stored_origin(zoo, manifest), name.repo_id).encode()}
    for unhashed in ("zoo.json", "build.json"):
        if (data := read_unhashed(zoo, unhashed)) is not None:
            texts[unhashed] = data
    files = {**manifest.files, **{file: FileInfo.of(data) for file, data in texts.items()}}
    check_file_names(str(zoo), files)
    check_sizes(str(zoo), {file: info.size for file, info in files.items()})
    _check_counts(zoo, files)
    return Release(name, zoo, manifest, texts, dict(sorted(files.items())))


def _check_counts(zoo: Path, files: Collection[str]) -> None:
    """Raise SpecError for more files than a hub takes."""
    folders = Counter(file.rpartition("/")[0] for file in files)
    folder, most = folders.most_common(1)[0]
    if len(files) > MAX_FILES or most > MAX_FILES_PER_FOLDER:
        raise SpecError(
            f"{zoo}: {len(files)} files, {most} of them in {folder or 'one folder'}; a hub takes {MAX_FILES}, and "
            f"{MAX_FILES_PER_FOLDER} in a folder. Keep fewer epochs with training.checkpoint_epochs"
        )
