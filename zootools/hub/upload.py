"""Publishing to the Hub: blobs first, then one commit that holds everything, with its parent checked.

A publication is the difference between the zoo and what the branch holds. Blobs that the Hub has are not sent
again, so an interrupted publication goes on where it stopped; and after a commit whose answer was lost, the
difference says whether it happened. Readers see the old version until the commit, and the new one after it.
"""

import hashlib
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from zootools import __version__
from zootools.errors import DamagedZooError, HubError, SpecError, ZooError, ZooNotFoundError
from zootools.filesystem.inside import is_snapshot, stat_inside
from zootools.hub.calls import (
    CONFLICT,
    FAILURES,
    TIMEOUT,
    check_token,
    is_transient,
    offline,
    retried,
    sent_by_library,
    status_of,
)
from zootools.hub.release import Published, Release
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.zoo_name import ZooName

FILES_PER_COMMIT = 1000
"""Beyond this a publication goes through a pull request, because a larger commit may run into the Hub's time limit."""

LARGE = (".safetensors", ".parquet")
"""Endings of files that the Hub stores as large ones, by their sha256."""

OF_THE_HUB = (".gitattributes",)
"""Files that belong to the Hub."""

Operation = CommitOperationAdd | CommitOperationDelete
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """What a branch holds: its commit, and for every file its size and the hash that the Hub knows it by."""

    commit: str
    files: dict[str, tuple[int, str]]
    private: bool


def upload(release: Release, endpoint: str | None, *, public: bool | None, tag: str | None) -> Published:
    """Make a branch of a repository equal to a release; see `zootools.hub.publish.publish`."""
    name = release.name
    target = Target(name, endpoint)
    before = target.open()
    operations = difference(release, before)
    _check_target(name, before, release)
    tagged = target.tagged(tag) if tag else None
    if tagged is not None and (operations or tagged != before.commit):
        raise SpecError(f"{name}: the tag {tag} stands for another version; tags do not move")
    if public is False and not before.private:
        target.set_private(True)
    after = before
    if len(operations) > FILES_PER_COMMIT:
        after = target.commit_by_pull_request(release, before)
    elif operations:
        target.send_blobs(release, operations)
        after = target.commit(release, operations, before)
    if left := difference(release, after):
        raise HubError(f"{name}: reads back otherwise than it was sent ({left[0].path_in_repo}); publish it again")
    if tag is not None and tagged is None:
        target.tag(tag, after.commit)
    if public and before.private:
        target.set_private(False)
    return Published(after.commit, target.api.endpoint, len(release.files), release.size, target.commits)


def check_access(name: ZooName, endpoint: str | None) -> None:
    """Raise HubError, before anything is hashed or sent, where publishing must fail for want of network or token."""
    if offline():
        raise HubError(f"{name}: HF_HUB_OFFLINE is set; unset it to publish, or give a folder with --hub")
    if not check_token():
        raise HubError(f"{name}: there is no token; run `hf auth login` or set HF_TOKEN, or give a folder with --hub")
    with suppress(ZooNotFoundError):
        Target(name, endpoint).state(first=True)


def difference(release: Release, state: State) -> list[Operation]:
    """Return what turns a branch into a release; the manifest comes last."""
    changed = [file for file, info in release.files.items() if not _is_there(release, file, info, state)]
    changed.sort(key=lambda file: (file == "zoo.json", file))
    deletions = [CommitOperationDelete(file) for file in sorted(set(state.files) - set(release.files))]
    return [*deletions, *(CommitOperationAdd(file, _source(release, file)) for file in changed)]


class Target:
    """One branch of one repository, and the calls that publishing makes there."""

    def __init__(self, name: ZooName, endpoint: str | None) -> None:
        self.name = name
        self.branch = name.revision or constants.DEFAULT_REVISION
        self.api = HfApi(endpoint=endpoint, library_name="zootools", library_version=__version__)
        self.commits = 0
        """How many commits were made here."""

    def state(self, revision: str | None = None, first: bool = False) -> State:
        """Return what a revision holds, by default the branch."""
        info = retried(
            lambda: self.api.dataset_info(
                self.name.repo_id, revision=revision or self.branch, files_metadata=True, timeout=TIMEOUT
            ),
            str(self.name),
            first=first,
        )
        files = {
            entry.rfilename: (entry.size or 0, entry.lfs.sha256 if entry.lfs else str(entry.blob_id))
            for entry in info.siblings or ()
            if entry.rfilename not in OF_THE_HUB
        }
        return State(str(info.sha), files, bool(info.private))

    def open(self) -> State:
        """Return what the branch holds; repository (private) and branch are made if there are none."""
        repo, is_main = self.name.repo_id, self.branch == constants.DEFAULT_REVISION
        try:
            return self.state(first=True)
        except ZooNotFoundError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                self._call(lambda: self.api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
        if not is_main:
            self._call(lambda: self.api.create_branch(repo, branch=self.branch, repo_type="dataset", exist_ok=True))
        return self.state()

    def tagged(self, tag: str) -> str | None:
        """Return the commit that a tag stands for, None where there is no such tag."""
        refs = self._call(lambda: self.api.list_repo_refs(self.name.repo_id, repo_type="dataset"))
        return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)

    def tag(self, tag: str, commit: str) -> None:
        """Let a tag stand for a commit."""
        repo = self.name.repo_id
        self._call(lambda: self.api.create_tag(repo, tag=tag, revision=commit, repo_type="dataset", exist_ok=True))

    def set_private(self, private: bool) -> None:
        """Say who may read the repository."""
        self._call(lambda: self.api.update_repo_settings(self.name.repo_id, private=private, repo_type="dataset"))

    def send_blobs(self, release: Release, operations: list[Operation]) -> None:
        """Upload the large files that the Hub does not have yet."""
        additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        for addition in additions:
            if addition.upload_info.sha256.hex() != release.files[addition.path_in_repo].sha256:
                raise DamagedZooError(f"{release.folder / addition.path_in_repo}: has changed while it was published")
        sent_by_library(
            lambda: self.api.preupload_lfs_files(
                self.name.repo_id, additions, repo_type="dataset", revision=self.branch, free_memory=False
            ),
            str(self.name),
        )

    def commit(self, release: Release, operations: list[Operation], parent: State) -> State:
        """Make one commit on top of ``parent``, and return what it holds.

        Where the answer is lost, the branch itself says whether the commit was made. Raises HubError when somebody
        else was faster.
        """

        def attempt() -> State:
            try:
                made = self.api.create_commit(
                    self.name.repo_id,
                    operations,
                    commit_message=_title(release),
                    repo_type="dataset",
                    revision=self.branch,
                    parent_commit=parent.commit,
                )
            except FAILURES as error:
                conflict = status_of(error) in CONFLICT
                if conflict or is_transient(error):
                    now = self.state()
                    if now.commit != parent.commit and _is_done(release, operations, now):
                        return now
                    if conflict or now.commit != parent.commit:
                        raise _conflict(self.name) from error
                raise
            return self.state(made.oid)

        state = self._call(attempt)
        self.commits += 1
        return state

    def commit_by_pull_request(self, release: Release, parent: State) -> State:
        """Make several commits beside the branch, then put all of them on it at once.

        The pull request of an interrupted publication of the same zoo is taken up again. Raises SpecError for a branch
        other than main, which the Hub allows no pull requests for; HubError when somebody else was faster.
        """
        repo = self.name.repo_id
        if self.branch != constants.DEFAULT_REVISION:
            raise SpecError(f"{self.name}: more than {FILES_PER_COMMIT} files can only be published to main")
        number = self._call(lambda: self._pull_request(release)) or self._open_pull_request(release, parent)
        side = Target(ZooName(self.name.org, self.name.name, f"refs/pr/{number}"), self.api.endpoint)
        state = side.state()
        while batch := difference(release, state)[:FILES_PER_COMMIT]:
            side.send_blobs(release, batch)
            state = side.commit(release, batch, state)
        if self.state().commit != parent.commit:
            raise _conflict(self.name)
        try:
            self._call(lambda: self.api.merge_pull_request(repo, number, repo_type="dataset"))
        except ZooError:
            # An answer that was lost makes a second attempt fail; what counts is whether it happened.
            if difference(release, self.state()):
                raise
        self.commits += side.commits + 1
        return self.state()

    def _pull_request(self, release: Release) -> int | None:
        requests = self.api.get_repo_discussions(
            self.name.repo_id, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        return next((request.num for request in requests if request.title == _title(release)), None)

    def _open_pull_request(self, release: Release, parent: State) -> int:
        """Open the pull request with its first commit, and return its number."""
        batch = difference(release, parent)[:FILES_PER_COMMIT]
        self.send_blobs(release, batch)

        def create() -> int:
            made = self.api.create_commit(
                self.name.repo_id,
                batch,
                commit_message=_title(release),
                repo_type="dataset",
                parent_commit=parent.commit,
                create_pr=True,
            )
            assert made.pr_num is not None
            return int(made.pr_num)

        # Where the answer was lost, the pull request is there.
        return self._call(lambda: self._pull_request(release) or create())

    def _call(self, call: Callable[[], T]) -> T:
        return retried(call, str(self.name))


def _check_target(name: ZooName, state: State, release: Release) -> None:
    """Refuse to replace something that is no zoo."""
    others = set(state.files) - set(release.files)
    if others and "zoo.json" not in state.files:
        raise SpecError(
            f"{name}: holds a data set that is no zoo, and publishing would delete {len(others)} files of it "
            f"({min(others)}); choose another name"
        )


def _is_there(release: Release, file: str, info: FileInfo, state: State) -> bool:
    size, digest = state.files.get(file, (-1, ""))
    if size != info.size:
        return False
    return bool(digest == (info.sha256 if len(digest) == 64 else _git_hash(release, file, size)))


def _is_done(release: Release, operations: list[Operation], state: State) -> bool:
    """Whether a state is what operations lead to."""
    left = {operation.path_in_repo for operation in difference(release, state)}
    return not any(operation.path_in_repo in left for operation in operations)


def _git_hash(release: Release, file: str, size: int) -> str:
    source = _source(release, file)
    data = source if isinstance(source, bytes) else VerifiedFiles(release.folder, release.files).read(file, size)
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()


def _source(release: Release, file: str) -> Path | bytes:
    """Return what a commit takes a file from: checked bytes, but for the large files, which go by their sha256.

    huggingface-hub opens those by their path, so a link is refused here.
    """
    if file in release.texts:
        return release.texts[file]
    if not file.endswith(LARGE):
        return VerifiedFiles(release.folder, release.files).read(file, release.files[file].size)
    with suppress(OSError):
        if stat.S_ISREG(stat_inside(release.folder, file).st_mode) or is_snapshot(release.folder):
            return release.folder / file
    raise DamagedZooError(f"{release.folder / file}: is not a plain file any more")


def _title(release: Release) -> str:
    """The first line of commits and pull requests; it names the zoo by its content."""
    return f"{release.manifest.name} {release.manifest.sha256[:12]} (zootools {__version__})"


def _conflict(name: ZooName) -> HubError:
    return HubError(f"{name}: somebody else has published there meanwhile; look at it, then run the same command again")
