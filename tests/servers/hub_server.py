"""A small Hub on loopback for the tests: the parts of the Hub's HTTP interface that its clients use, in memory.

The real clients (huggingface_hub with LFS uploads, datasets) talk to it, through HF_ENDPOINT or ``hub=URL``. It stores
commits, branches, tags and pull requests, checks parents of commits and who may read and write, and refuses a commit
whose blobs it does not have. `Fault` lets it fail on purpose, `HubServer.requests` is its log.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "t0ken" * 6 + "abcd"  # writes everywhere
READER = "hf_" + "reader" * 5 + "abcd"  # may read everything and write nothing
LARGE = (".parquet", ".safetensors", ".png")

Files = dict[str, "Blob"]


@dataclass(frozen=True)
class Blob:
    """A file's content: large ones are known by their sha256, others by git's sha1."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git(self) -> str:
        data = self.data
        if self.large:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            data = text.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git


@dataclass
class Repo:
    """A repository: files by commit, the history of every ref, newest last."""

    private: bool
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision][-1]
        return self.tags.get(revision) or (revision if revision in self.commits else None)

    def add(self, ref: str, files: Files) -> str:
        history = self.refs.setdefault(ref, [])
        text = json.dumps([history[-1:], ref, sorted((path, blob.git) for path, blob in files.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        history.append(commit)
        return commit

    def head(self, ref: str = "main") -> Files:
        return self.commits[self.refs[ref][-1]]


@dataclass
class Fault:
    """A failure, and its requests: the first ``times`` whose ``"METHOD path"`` matches.

    ``kind``: a status to answer with; ``reset`` the connection before, or ``reset-after`` the request is carried out;
    ``truncate`` the body of the answer; ``flip`` a bit of it; ``more`` bytes than HEAD announced; none of these. In
    every case ``call`` is called first.
    """

    pattern: str
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    call: Callable[[], None] | None = None


@dataclass
class Request:
    """One line of the server's log: bytes of the bodies that were received and sent."""

    method: str
    path: str
    received: int
    status: int = 0
    sent: int = 0


class HubServer(ThreadingHTTPServer):
    """The server; ``url`` is what HF_ENDPOINT or ``hub=`` takes."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.connections = 0
        self.xet: str | None = None
        """Where Xet uploads go (``local:///folder``): hf_xet writes there itself; only it can read that."""

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                self.connections -= 1

    def settle(self) -> None:
        """Wait until everything that a client sent before it died has been carried out."""
        idle = 0
        while idle < 3:
            time.sleep(0.02)
            idle = 0 if self.connections else idle + 1

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the tests."""


@contextmanager
def serve() -> Iterator[HubServer]:
    """Run a server for the length of a block."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def do_any(self) -> None:
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        line = f"{self.command} {unquote(self.url.path)}"
        self.fault = self.server.fault(line)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._read_chunks()
        kind = self.fault.kind if self.fault else None
        self.entry = Request(self.command, unquote(self.url.path), len(self.body))
        with self.server.lock:
            self.server.requests.append(self.entry)
        if self.fault and self.fault.call:
            self.fault.call()
        if kind == "reset":
            self._reset()
        elif isinstance(kind, int):
            self._answer(b"{}", kind, self.fault.headers if self.fault else {})
        else:
            try:
                self._route(line)
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message or refusal.code}
                body = json.dumps({"error": refusal.message or refusal.code}).encode()
                self._answer(body, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def log_message(self, *_: object) -> None:
        pass

    # --- what is asked for -------------------------------------------------------------------------------

    def _route(self, line: str) -> None:
        name, kind = r"([^/]+/[^/]+)", "(?:datasets|models)"
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"GET /log", self._log),
            (r"GET /api/whoami-v2", self._whoami),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (r"GET /api/datasets", self._list),
            (rf"GET /api/{kind}/{name}(?:/revision/(.+))?", self._info),
            (rf"GET /api/{kind}/{name}/tree/([^/]+)(?:/(.*))?", self._tree),
            (rf"POST /api/{kind}/{name}/paths-info/([^/]+)", self._paths_info),
            (rf"GET /api/{kind}/{name}/refs", self._refs),
            (rf"POST /api/{kind}/{name}/tag/(.+)", self._tag),
            (rf"POST /api/{kind}/{name}/branch/(.+)", self._branch),
            (rf"PUT /api/{kind}/{name}/settings", self._settings),
            (rf"POST /api/{kind}/{name}/preupload/(.+)", self._preupload),
            (rf"POST /api/{kind}/{name}/commit/(.+)", self._commit),
            (rf"GET /api/datasets/{name}/discussions", self._discussions),
            (rf"POST /api/datasets/{name}/discussions/(\d+)/merge", self._merge),
            (rf"GET /api/{kind}/{name}/xet-write-token/(.+)", self._xet_token),
            (rf"POST (?:/datasets)?/{name}\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /blobs/([0-9a-f]{64})", self._put_blob),
            (rf"(?:GET|HEAD) (?:/datasets)?/{name}/resolve/((?:refs/pr/)?[^/]+)/(.+)", self._resolve),
        ]
        # Of two patterns that match the more particular one is meant: the last.
        for pattern, handler in reversed(routes):
            if match := re.fullmatch(pattern, line):
                with self.server.lock:
                    handler(*match.groups())
                return
        raise Refusal(404, "", "Not Found")

    def _log(self) -> None:
        """Return the log and start a new one (for a server that runs as a process)."""
        log = [asdict(entry) for entry in self.server.requests if entry is not self.entry]
        self.server.requests.clear()
        self._json(log)

    def _whoami(self) -> None:
        if self._token() is None:
            raise Refusal(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/datasets/{repo_id}"
        if repo_id in self.server.repos:
            self._json({"url": url, "error": "You already created this dataset repo"}, 409)
            return
        repo = self.server.repos[repo_id] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.add("main", {".gitattributes": Blob(b"*.parquet filter=lfs\n", False)})
        self._json({"url": url, "name": repo_id})

    def _validate(self) -> None:
        header = json.loads(self.body)["content"].split("---")[1]
        known = isinstance(yaml.safe_load(header), dict)
        self._json({"errors": [] if known else [{"message": "no mapping"}], "warnings": []}, 200 if known else 400)

    def _list(self) -> None:
        wanted, words = self.query.get("filter", []), self.query.get("search", [""])
        found = []
        for repo_id, repo in sorted(self.server.repos.items()):
            card = self._card(repo.head())
            if set(wanted) <= set(card.get("tags", [])) and all(word in repo_id for word in words):
                if repo.private and self._token() is None:
                    continue
                entry = {
                    "sha": repo.resolve("main"),
                    "tags": card.get("tags", []),
                    "description": self._text(repo.head())[:400],
                    "lastModified": "2026-11-26T09:30:00.000Z",
                    "mainSize": sum(len(blob.data) for blob in repo.head().values()),
                }
                asked = self.query.get("expand") or list(entry)
                found.append({"id": repo_id} | {key: value for key, value in entry.items() if key in asked})
        self._json(found)

    def _info(self, repo_id: str, revision: str | None) -> None:
        repo = self._readable(repo_id)
        commit = self._commit_of(repo, revision or "main")
        siblings = []
        for path, blob in sorted(repo.commits[commit].items()):
            entry: dict[str, Any] = {"rfilename": path, "size": len(blob.data), "blobId": blob.git}
            if blob.large:
                entry["lfs"] = {"size": len(blob.data), "sha256": blob.sha256, "pointerSize": 130}
            siblings.append(entry if "blobs" in self.query else {"rfilename": path})
        card = self._card(repo.commits[commit])
        self._json(
            {
                "id": repo_id,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": siblings,
                "cardData": card,
                "tags": card.get("tags", []),
            }
        )

    def _tree(self, repo_id: str, revision: str, under: str | None) -> None:
        repo = self._readable(repo_id)
        commit = self._commit_of(repo, revision)
        prefix = f"{under.rstrip('/')}/" if under else ""
        entries, folders = [], set()
        for path, blob in sorted(repo.commits[commit].items()):
            if path.startswith(prefix):
                parents = path[len(prefix) :].split("/")[:-1]
                folders |= {prefix + "/".join(parents[: n + 1]) for n in range(len(parents))}
                entries.append(self._entry(path, blob))
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        if not entries and under:
            raise Refusal(404, "EntryNotFound")
        if "recursive" not in self.query:
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self._json(entries)

    def _paths_info(self, repo_id: str, revision: str) -> None:
        repo = self._readable(repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        text = self.body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        self._json([self._entry(path, files[path]) for path in paths if path in files])

    def _refs(self, repo_id: str) -> None:
        repo = self._readable(repo_id)

        def shown(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in refs.items()]

        branches = {name: history[-1] for name, history in repo.refs.items() if not name.startswith("refs/")}
        self._json({"branches": shown("heads", branches), "tags": shown("tags", repo.tags), "converts": []})

    def _tag(self, repo_id: str, revision: str) -> None:
        repo = self._writable(repo_id)
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise Refusal(409, "", "Tag already exists")
        repo.tags[tag] = self._commit_of(repo, revision)
        self._json({})

    def _branch(self, repo_id: str, branch: str) -> None:
        repo = self._writable(repo_id)
        if branch in repo.refs:
            raise Refusal(409, "", "Branch already exists")
        repo.refs[branch] = [repo.refs["main"][-1]]
        self._json({})

    def _settings(self, repo_id: str) -> None:
        repo = self._writable(repo_id)
        asked = json.loads(self.body)
        repo.private = asked["visibility"] == "private" if "visibility" in asked else asked["private"]
        self._json({})

    def _preupload(self, repo_id: str, revision: str) -> None:
        repo = self._writable(repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, there = asked["path"], files.get(asked["path"])
            large = path.endswith(LARGE) or asked["size"] > 10 << 20
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": there.etag if there else None,
                }
            )
        self._json({"files": answers})

    def _xet_token(self, repo_id: str, revision: str) -> None:
        self._writable(repo_id)
        if self.server.xet is None:
            raise Refusal(404, "", "Not Found")
        expires = int(time.time()) + 3600
        token = {"casUrl": self.server.xet, "accessToken": "x", "exp": expires}
        headers = {"X-Xet-Cas-Url": self.server.xet, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(expires)}
        self._answer(json.dumps(token).encode(), 200, headers)

    def _batch(self, repo_id: str) -> None:
        self._writable(repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/blobs/{asked['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _put_blob(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refusal(400, "", "sha256 does not match")
        self.server.blobs[sha256] = self.body
        self._json({})

    def _commit(self, repo_id: str, ref: str) -> None:
        repo = self._writable(repo_id)
        parent = self._commit_of(repo, ref)
        files = dict(repo.commits[parent])
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        create_pr = "create_pr" in self.query
        if header.get("parentCommit") not in (None, parent) and not create_pr:
            raise Refusal(412, "", "The parent commit is not the head of the branch")
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = Blob(base64.b64decode(line["value"]["content"]), False)
            elif line["key"] == "lfsFile":
                if line["value"]["oid"] not in self.server.blobs:
                    raise Refusal(400, "", f"{path}: its content was not uploaded")
                files[path] = Blob(self.server.blobs[line["value"]["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[path]
            else:
                raise Refusal(400, "", f"unknown operation {line['key']}")
        request_url = None
        if create_pr:
            number = len(repo.requests) + 1
            repo.requests.append({"num": number, "title": header["summary"], "status": "open"})
            ref = f"refs/pr/{number}"
            repo.refs[ref] = [parent]
            request_url = f"{self.server.url}/datasets/{repo_id}/discussions/{number}"
        commit = repo.add(ref, files)
        url = f"{self.server.url}/datasets/{repo_id}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": request_url, "success": True})

    def _discussions(self, repo_id: str) -> None:
        repo = self._readable(repo_id)
        shown = [
            {
                **request,
                "author": {"name": "tester"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "isPullRequest": True,
                "repo": {"name": repo_id, "type": "dataset"},
            }
            for request in repo.requests
            if request["status"] == self.query.get("status", ["open"])[0]
        ]
        self._json({"discussions": shown, "count": len(shown), "start": 0})

    def _merge(self, repo_id: str, number: str) -> None:
        repo = self._writable(repo_id)
        request = repo.requests[int(number) - 1]
        if request["status"] != "open" or repo.refs[f"refs/pr/{number}"][0] != repo.refs["main"][-1]:
            raise Refusal(409, "", "cannot be merged")
        request["status"] = "merged"
        repo.add("main", repo.head(f"refs/pr/{number}"))
        self._json({})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._readable(repo_id, files=True)
        commit = self._commit_of(repo, revision)
        blob = repo.commits[commit].get(path)
        if blob is None:
            raise Refusal(404, "EntryNotFound")
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        data, status = blob.data, 200
        if self.command == "GET" and (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.fault and self.fault.kind == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.fault and self.fault.kind == "more":
            data += b"\0" * (8 << 20)
        self._answer(data, status, headers)

    # --- callers and their rights --------------------------------------------------------------------------

    def _token(self) -> str | None:
        """Return the token of the request, None without one."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given and given not in (TOKEN, READER):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return given or None

    def _writer(self) -> None:
        token = self._token()
        if token != TOKEN:
            raise Refusal(401 if token is None else 403, "", "You do not have the right to write here")

    def _readable(self, repo_id: str, files: bool = False) -> Repo:
        token, repo = self._token(), self.server.repos.get(repo_id)
        if repo is None or (repo.private and token is None):
            raise Refusal(404 if token else 401, "RepoNotFound")
        if repo.gated and token is None and files:
            raise Refusal(401, "GatedRepo", "Access to this data set is restricted")
        return repo

    def _writable(self, repo_id: str) -> Repo:
        repo = self._readable(repo_id)
        self._writer()
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(unquote(revision))
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    @staticmethod
    def _card(files: Files) -> dict[str, Any]:
        text = files["README.md"].data.decode() if "README.md" in files else ""
        return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}

    @staticmethod
    def _text(files: Files) -> str:
        text = files["README.md"].data.decode() if "README.md" in files else ""
        return text.split("\n---\n", 1)[-1]

    @staticmethod
    def _entry(path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.git, "size": len(blob.data)}
        if blob.large:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        return entry

    # --- answers -----------------------------------------------------------------------------------------

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _answer(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.entry.status = status
        if self.fault and self.fault.kind == "reset-after":
            self._reset()
            return
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.kind == "truncate":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.entry.sent = len(data)
        self.wfile.write(data)

    def _reset(self) -> None:
        """Reset the connection of the client."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


if __name__ == "__main__":
    with serve() as running:
        print(running.url, flush=True)
        while True:
            time.sleep(60)
