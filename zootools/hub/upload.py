"""Upload of a release to the Hub: first the large files, then one commit with all changes, on a parent that is checked.

What is sent is the difference between the release and the branch. Large files that the Hub has are not sent again, so
the same command resumes an interrupted upload. After a commit whose response was lost, the difference tells whether
it was made. Readers see the old version until the commit, and the new version afterwards.
"""

import hashlib
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import RepositoryNotFoundError

from zootools import __version__
from zootools.errors import DamagedZooError, HubError, SpecError, ZooError, ZooNotFoundError
from zootools.filesystem.inside import is_snapshot, stat_inside
from zootools.hub.calls import (
    CONFLICT,
    FAILURES,
    check_token,
    is_transient,
    offline,
    retried,
    sent_by_library,
    status_of,
)
from zootools.hub.release import Published, Release
from zootools.hub.repository import Content, hub_api, read_content
from zootools.percent import PercentProgress
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.zoo_name import ZooName

FILES_PER_COMMIT = 1000
"""A larger difference is uploaded through a pull request: one commit could exceed the Hub's time limit."""

FILES_PER_BATCH = 64
"""Files that are sent between two updates of the progress; each batch costs two requests."""

LARGE = (".safetensors", ".parquet")
"""Endings of the files that the Hub stores as large files, by their sha256."""

OF_THE_HUB = (".gitattributes",)
"""Files that the Hub adds; they are neither compared nor deleted."""

Operation = CommitOperationAdd | CommitOperationDelete
T = TypeVar("T")


def upload(
    release: Release, endpoint: str | None, *, public: bool | None, tag: str | None, quiet: bool = True
) -> Published:
    """Make a branch of a repository equal to a release; see `zootools.hub.publish.publish` for arguments and errors."""
    name = release.name
    target = Target(name, endpoint, quiet)
    before = target.open()
    operations = difference(release, before)
    _check_target(name, before, release)
    tagged = target.tagged(tag) if tag else None
    if tagged is not None and (operations or tagged != before.commit):
        raise SpecError(f"{name}: the tag {tag} is already that of another version; a tag never moves")
    changes = []
    if public is False and not before.private:
        target.set_private(True)
        changes.append("private")
    after = before
    if len(operations) > FILES_PER_COMMIT:
        after = target.commit_by_pull_request(release, before)
    elif operations:
        target.send_blobs(release, operations)
        after = target.commit(release, operations, before)
    if left := difference(release, after):
        raise HubError(f"{name}: has other content than was sent ({left[0].path_in_repo}); publish it again")
    if operations:
        changes.append(f"{target.commits} commit{'s' if target.commits > 1 else ''}")
    if tag is not None and tagged is None:
        target.tag(tag, after.commit)
        changes.append(f"{tag} names this version")
    if public and before.private:
        target.set_private(False)
        changes.append("public")
    return Published(
        after.commit, target.api.endpoint, len(release.files), release.size, target.commits, name, tag, tuple(changes)
    )


def check_access(name: ZooName, endpoint: str | None) -> None:
    """Raise HubError, before anything is hashed or sent, where the upload would fail without network or token."""
    if offline():
        raise HubError(f"{name}: HF_HUB_OFFLINE is set; unset it to publish, or give a folder with --hub")
    if not check_token():
        raise HubError(f"{name}: there is no token; run `hf auth login` or set HF_TOKEN, or give a folder with --hub")
    with suppress(ZooNotFoundError):
        Target(name, endpoint).content(first=True)


def difference(release: Release, content: Content) -> list[Operation]:
    """Return the operations that turn a branch into a release, the manifest last."""
    changed = [file for file, info in release.files.items() if not _is_there(release, file, info, content)]
    changed.sort(key=lambda file: (file == "zoo.json", file))
    deletions = [CommitOperationDelete(file) for file in sorted(set(content.files) - set(release.files))]
    return [*deletions, *(CommitOperationAdd(file, _source(release, file)) for file in changed)]


class Target:
    """One branch of one repository, and the calls that change it."""

    def __init__(self, name: ZooName, endpoint: str | None, quiet: bool = True) -> None:
        self.name, self.quiet = name, quiet
        self.branch = name.revision or constants.DEFAULT_REVISION
        self.api = hub_api(endpoint)
        self.commits = 0
        """The number of commits made through this object."""

    def content(self, revision: str | None = None, first: bool = False) -> Content:
        """Return the content of a revision, by default of the branch."""
        content = read_content(self.api, self.name, revision or self.branch, first)
        return replace(content, files={file: info for file, info in content.files.items() if file not in OF_THE_HUB})

    def open(self) -> Content:
        """Return the content of the branch; a missing repository (private) or branch is created."""
        repo, is_main = self.name.repo_id, self.branch == constants.DEFAULT_REVISION
        try:
            return self.content(first=True)
        except ZooNotFoundError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                self._call(lambda: self.api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
        if not is_main:
            self._call(lambda: self.api.create_branch(repo, branch=self.branch, repo_type="dataset", exist_ok=True))
        return self.content()

    def tagged(self, tag: str) -> str | None:
        """Return the commit of a tag, None where there is no such tag."""
        refs = self._call(lambda: self.api.list_repo_refs(self.name.repo_id, repo_type="dataset"))
        return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)

    def tag(self, tag: str, commit: str) -> None:
        """Give a commit a tag."""
        repo = self.name.repo_id
        self._call(lambda: self.api.create_tag(repo, tag=tag, revision=commit, repo_type="dataset", exist_ok=True))

    def set_private(self, private: bool) -> None:
        """Make the repository private or public."""
        self._call(lambda: self.api.update_repo_settings(self.name.repo_id, private=private, repo_type="dataset"))

    def send_blobs(self, release: Release, operations: list[Operation]) -> None:
        """Upload the large files that the Hub does not have yet."""
        additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        for addition in additions:
            if addition.upload_info.sha256.hex() != release.files[addition.path_in_repo].sha256:
                raise DamagedZooError(f"{release.folder / addition.path_in_repo}: changed while it was published")
        with PercentProgress(sum(a.upload_info.size for a in additions), "uploading", self.quiet) as progress:
            for batch in batched(additions, FILES_PER_BATCH):
                sent_by_library(
                    lambda batch=batch: self.api.preupload_lfs_files(  # type: ignore[misc]
                        self.name.repo_id, batch, repo_type="dataset", revision=self.branch, free_memory=False
                    ),
                    str(self.name),
                )
                progress.tick(sum(addition.upload_info.size for addition in batch))

    def commit(self, release: Release, operations: list[Operation], parent: Content) -> Content:
        """Make one commit on top of ``parent``, and return its content.

        Where the response is lost, the branch tells whether the commit was made. Raises HubError when another
        publisher changed the branch first.
        """

        def attempt() -> Content:
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
                    now = self.content()
                    if now.commit != parent.commit and _is_done(release, operations, now):
                        return now
                    if conflict or now.commit != parent.commit:
                        raise _conflict(self.name) from error
                raise
            return self.content(made.oid)

        content = self._call(attempt)
        self.commits += 1
        return content

    def commit_by_pull_request(self, release: Release, parent: Content) -> Content:
        """Make several commits in a pull request, merge it, and return the content of the branch.

        The pull request of an interrupted upload of the same zoo is resumed. Raises SpecError for a branch other than
        main, because the Hub has pull requests for main only; HubError when another publisher changed the branch first.
        """
        repo = self.name.repo_id
        if self.branch != constants.DEFAULT_REVISION:
            raise SpecError(f"{self.name}: more than {FILES_PER_COMMIT} files can only be published to main")
        number = self._call(lambda: self._pull_request(release)) or self._open_pull_request(release, parent)
        side = Target(ZooName(self.name.org, self.name.name, f"refs/pr/{number}"), self.api.endpoint, self.quiet)
        content = side.content()
        while batch := difference(release, content)[:FILES_PER_COMMIT]:
            side.send_blobs(release, batch)
            content = side.commit(release, batch, content)
        if self.content().commit != parent.commit:
            raise _conflict(self.name)
        try:
            self._call(lambda: self.api.merge_pull_request(repo, number, repo_type="dataset"))
        except ZooError:
            # After a response that was lost the retry fails, although the pull request has been merged.
            if difference(release, self.content()):
                raise
        self.commits += side.commits + 1
        return self.content()

    def _pull_request(self, release: Release) -> int | None:
        requests = self.api.get_repo_discussions(
            self.name.repo_id, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        return next((request.num for request in requests if request.title == _title(release)), None)

    def _open_pull_request(self, release: Release, parent: Content) -> int:
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

        # Where the response was lost, the pull request exists.
        return self._call(lambda: self._pull_request(release) or create())

    def _call(self, call: Callable[[], T]) -> T:
        return retried(call, str(self.name))


def batched(additions: list[CommitOperationAdd], size: int) -> Iterator[list[CommitOperationAdd]]:
    """Yield the additions in lists of at most ``size``."""
    for start in range(0, len(additions), size):
        yield additions[start : start + size]


def _check_target(name: ZooName, content: Content, release: Release) -> None:
    """Raise SpecError for a data set that is not a zoo: the upload would delete its files."""
    others = set(content.files) - set(release.files)
    if others and "zoo.json" not in content.files:
        raise SpecError(
            f"{name}: holds a data set that is not a zoo, and publishing would delete {len(others)} of its files "
            f"({min(others)}); choose another name"
        )


def _is_there(release: Release, file: str, info: FileInfo, content: Content) -> bool:
    """Whether a branch has a file of a release with the same bytes."""
    there = content.files.get(file)
    if there is None or there.size != info.size:
        return False
    if there.sha256 is not None:
        return there.sha256 == info.sha256
    return there.blob_id == _git_hash(release, file, info.size)


def _is_done(release: Release, operations: list[Operation], content: Content) -> bool:
    """Whether a branch has the content that operations lead to."""
    left = {operation.path_in_repo for operation in difference(release, content)}
    return not any(operation.path_in_repo in left for operation in operations)


def _git_hash(release: Release, file: str, size: int) -> str:
    source = _source(release, file)
    data = source if isinstance(source, bytes) else VerifiedFiles(release.folder, release.files).read(file, size)
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()


def _source(release: Release, file: str) -> Path | bytes:
    """Return the verified bytes of a file, or the path of a large one, whose sha256 the Hub compares.

    huggingface-hub opens the path, so a link is refused here. Raises DamagedZooError.
    """
    if file in release.texts:
        return release.texts[file]
    if not file.endswith(LARGE):
        return VerifiedFiles(release.folder, release.files).read(file, release.files[file].size)
    with suppress(OSError):
        if stat.S_ISREG(stat_inside(release.folder, file).st_mode) or is_snapshot(release.folder):
            return release.folder / file
    raise DamagedZooError(f"{release.folder / file}: is no longer a plain file")


def _title(release: Release) -> str:
    """Return the title of commits and pull requests, which names the zoo by its content."""
    return f"{release.manifest.name} {release.manifest.sha256[:12]} (zootools {__version__})"


def _conflict(name: ZooName) -> HubError:
    return HubError(
        f"{name}: was published by another user or process meanwhile; check it, then run the same command again"
    )
