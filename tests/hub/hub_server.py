"""A double of the model hub: an HTTP server on the loopback, for `HF_ENDPOINT`.

It answers what the installed ``huggingface_hub``, ``transformers`` and ``datasets`` ask, with the status codes, headers and
redirects of the real hub, and it has bad days: see :class:`Fault`. The repositories are those of ``hub_models`` and
``hub_datasets``. To try a command by hand::

    python tests/hub/hub_server.py        # prints HF_ENDPOINT, serves until it is interrupted
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2024-01-01T00:00:00.000Z"
BOT = "SFconvertbot"
CONVERSION_TITLE = "Adding `safetensors` variant of this model"
_LFS_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack", ".parquet", ".tar", ".zip")


def commit_id(text: str) -> str:
    """A made commit: 40 hexadecimal digits, the same ones for the same text."""
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a commit; large ones are kept in LFS, as the hub does by their suffix."""

    content: bytes
    lfs: bool

    @cached_property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """A commit with all its files; ``parent`` is the commit before it."""

    id: str
    files: Mapping[str, File]
    author: str
    title: str
    parent: str | None = None


@dataclass(frozen=True)
class Discussion:
    """A discussion, or a pull request whose branch is ``refs/pr/{num}``."""

    num: int
    title: str
    author: str
    status: Literal["open", "closed", "merged", "draft"] = "open"
    is_pull_request: bool = True


@dataclass
class Repository:
    """A model or a dataset: its commits, branches (``main``, ``refs/pr/1``) and discussions."""

    name: str
    kind: Literal["models", "datasets"] = "models"
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)

    def commit(
        self, ref: str, id: str, files: Mapping[str, bytes], *, author: str, title: str, parent: str | None = None
    ) -> None:
        """Put a commit on ``ref``: the files of ``parent``, where one is given, and ``files``."""
        held = dict(self.commits[parent].files) if parent is not None else {}
        for path, content in files.items():
            held[path] = File(content, path.endswith(_LFS_SUFFIXES))
        self.commits[id] = Commit(id, held, author, title, parent)
        self.refs[ref] = id

    def pull_request(
        self,
        num: int,
        id: str,
        files: Mapping[str, bytes],
        *,
        author: str = BOT,
        title: str = CONVERSION_TITLE,
        status: Literal["open", "closed", "merged", "draft"] = "open",
        parent: str | None = None,
    ) -> None:
        """Open a pull request of one commit; ``parent`` is the head of ``main`` unless one is given."""
        self.commit(f"refs/pr/{num}", id, files, author=author, title=title, parent=parent or self.refs["main"])
        self.discussions.append(Discussion(num, title, author, status))

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str) -> list[Commit]:
        """The commits of a revision, the last one first."""
        found, commit = [], self.at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD /path`` matches ``pattern``.

    Attributes:
        kind: ``status`` answers ``status`` with ``headers``; ``cut`` breaks the connection in the middle of the body;
            ``flip`` changes one byte of it; ``etag`` sends another checksum than that of the file; ``silence`` takes the
            request and never answers.
        times: how many requests fail before all is well again; None, all of them.
    """

    pattern: str
    kind: Literal["status", "cut", "flip", "etag", "silence"] = "status"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = None


class Hub(ThreadingHTTPServer):
    """The running server. ``requests`` holds ``METHOD /path`` of all that was asked, in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, repositories: list[Repository], *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories = {(repository.kind, repository.name): repository for repository in repositories}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        """The same server under another host name, as large files lie with another host than the hub."""
        return f"http://localhost:{self.server_port}/lfs/"

    def model(self, name: str) -> Repository:
        return self.repositories["models", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["datasets", name]

    def asked(self, pattern: str = "") -> list[str]:
        """The requests so far whose ``METHOD /path`` matches."""
        return [request for request in self.requests if re.search(pattern, request)]

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """A bad day, for as long as the block runs."""
        self.faults.extend(faults)
        try:
            yield
        finally:
            for fault in faults:
                self.faults.remove(fault)

    def note(self, request: str) -> Fault | None:
        """Keep a request in the log; the fault that it meets, if any."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if re.search(fault.pattern, request) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def lfs_file(self, sha256: str) -> File | None:
        for repository in self.repositories.values():
            for commit in repository.commits.values():
                for file in commit.files.values():
                    if file.lfs and file.sha256 == sha256:
                        return file
        return None

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The log is ``Hub.requests``."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        self.fault = self.server.note(f"{self.command} {unquote(path)}")
        if self.fault is not None and self.fault.kind == "silence":
            self.server.closing.wait()
            self.close_connection = True
            return
        if self.fault is not None and self.fault.kind == "status":
            self._error(self.fault.status, self.fault.headers, "the hub has a bad day")
            return
        if path == "/":
            self._send(200, b"")
        elif path.startswith("/lfs/"):
            self._lfs(path.removeprefix("/lfs/"))
        elif match := re.fullmatch(r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._resolve(*map(unquote, match.groups()), redirected=True)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            self._resolve(kind, *map(unquote, match.group(2, 3, 4)))
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.+))?", path):
            self._api(match[1], match[2], match[3] or "", query, parse_qs(body.decode()))
        else:
            self._error(404, {}, "Sorry, we can't find the page you are looking for.")

    # Answers

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if fault is not None and fault.kind == "flip" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        self.wfile.write(content)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _error(self, status: int, headers: Mapping[str, str], message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(status, content, {"Content-Type": "application/json", "X-Error-Message": message, **headers})

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.server.repositories.get((kind, name))  # type: ignore[call-overload]
        if found is None:
            # To who is not logged in, a repository that is not there looks like a private one.
            self._error(401, {"X-Error-Code": "RepoNotFound"}, "Repository not found")
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit | None:
        found = repository.at(revision)
        if found is None:
            self._error(404, {"X-Error-Code": "RevisionNotFound"}, f"Invalid rev id: {revision}")
        return found

    # Files

    def _resolve(self, kind: str, name: str, revision: str, path: str, redirected: bool = False) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if repository.gated and "Authorization" not in self.headers:
            message = f"Access to {kind.removesuffix('s')} {name} is restricted. You must have access to it and be authenticated."
            self._error(401, {"X-Error-Code": "GatedRepo"}, message)
            return
        commit = self._commit(repository, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.id}
        file = commit.files.get(path)
        if file is None:
            self._error(404, headers | {"X-Error-Code": "EntryNotFound"}, "Entry not found")
            return
        etag = "0" * len(file.etag) if self.fault is not None and self.fault.kind == "etag" else file.etag
        headers["ETag"] = f'"{etag}"'
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(file.content))}
            self._send(302, b"", headers | linked | {"Location": self.server.storage + file.sha256})
        elif redirected:
            self._content(file, headers)
        else:
            self._send(307, b"", headers | {"Location": f"/api/resolve-cache/{kind}/{name}/{commit.id}/{path}"})

    def _lfs(self, sha256: str) -> None:
        file = self.server.lfs_file(sha256)
        if file is None:
            self._error(404, {}, "no such object")
        else:
            self._content(file, {"ETag": f'"{sha256}"'})

    def _content(self, file: File, headers: Mapping[str, str]) -> None:
        content, headers = file.content, {**headers, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self._send(200, content, headers)
            return
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        if first > last:
            self._error(416, {"Content-Range": f"bytes */{len(content)}"}, "Requested range not satisfiable")
            return
        self._send(206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    # Metadata

    def _api(self, kind: str, name: str, rest: str, query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        route, _, value = rest.partition("/")
        if route in ("", "revision"):
            self._info(repository, unquote(value) or "main", "blobs" in query)
        elif route == "refs":
            self._refs(repository, "include_prs" in query)
        elif route == "commits":
            if self._commit(repository, unquote(value)) is not None:
                self._json([_commit_entry(commit) for commit in repository.history(unquote(value))])
        elif route == "discussions":
            self._discussions(repository, value, query)
        elif route == "tree":
            revision, _, folder = value.partition("/")
            commit = self._commit(repository, unquote(revision))
            if commit is not None:
                self._tree(commit, unquote(folder), query.get("recursive", ["false"])[0].lower() == "true")
        elif route == "paths-info":
            commit = self._commit(repository, unquote(value))
            if commit is not None:
                entries = {entry["path"]: entry for entry in _entries(commit)}
                self._json([entries[path] for path in form.get("paths", []) if path in entries])
        else:
            self._error(404, {}, "Sorry, we can't find the page you are looking for.")

    def _info(self, repository: Repository, revision: str, blobs: bool) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        siblings: list[dict[str, object]] = []
        for path, file in commit.files.items():
            entry: dict[str, object] = {"rfilename": path}
            if blobs:
                entry |= {"size": len(file.content), "blobId": file.blob_id}
                if file.lfs:
                    entry["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
            siblings.append(entry)
        self._json(
            {
                "_id": repository.name,
                "id": repository.name,
                "author": repository.name.partition("/")[0],
                "sha": commit.id,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": False,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _refs(self, repository: Repository, pull_requests: bool) -> None:
        listed = {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repository.refs.items()
                if not name.startswith("refs/")
            ],
            "converts": [],
            "tags": [],
        }
        if pull_requests:
            listed["pullRequests"] = [
                {"name": name.removeprefix("refs/"), "ref": name, "targetCommit": commit}
                for name, commit in repository.refs.items()
                if name.startswith("refs/pr/")
            ]
        self._json(listed)

    def _discussions(self, repository: Repository, num: str, query: dict[str, list[str]]) -> None:
        if num:
            for discussion in repository.discussions:
                if str(discussion.num) == num:
                    changes = {"base": "refs/heads/main"}
                    self._json(
                        _discussion_entry(repository, discussion)
                        | {"events": [], "changes": changes, "filesWithConflicts": []}
                    )
                    return
            self._error(404, {}, "Discussion not found")
            return
        chosen = [
            discussion
            for discussion in repository.discussions
            if query.get("author", [discussion.author])[0] == discussion.author
            and query.get("status", ["all"])[0] in ("all", discussion.status)
            and (
                query.get("type", ["all"])[0] == "all"
                or discussion.is_pull_request == (query["type"][0] == "pull_request")
            )
        ]
        start = int(query.get("p", ["0"])[0]) * 50
        page = [_discussion_entry(repository, discussion) for discussion in chosen[start : start + 50]]
        self._json({"discussions": page, "count": len(chosen), "start": start})

    def _tree(self, commit: Commit, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = [entry for entry in _entries(commit) if str(entry["path"]).startswith(prefix)]
        if not recursive:
            below = [entry for entry in below if "/" not in str(entry["path"]).removeprefix(prefix)]
        if not below and folder:
            self._error(404, {"X-Error-Code": "EntryNotFound"}, f"{folder} does not exist on {commit.id}")
            return
        self._json(below)


def _entries(commit: Commit) -> list[dict[str, object]]:
    """Every folder and file of a commit, as the tree listing has them."""
    folders = sorted({path.rsplit("/", 1)[0] for path in commit.files if "/" in path})
    entries: list[dict[str, object]] = [
        {"type": "directory", "oid": commit_id(folder), "size": 0, "path": folder} for folder in folders
    ]
    for path, file in commit.files.items():
        entry: dict[str, object] = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        entries.append(entry)
    return entries


def _commit_entry(commit: Commit) -> dict[str, object]:
    return {
        "id": commit.id,
        "title": commit.title,
        "message": "",
        "authors": [{"user": commit.author, "avatar": ""}],
        "date": DATE,
    }


def _discussion_entry(repository: Repository, discussion: Discussion) -> dict[str, object]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author, "type": "user"},
        "isPullRequest": discussion.is_pull_request,
        "createdAt": DATE,
        "repo": {"name": repository.name, "type": repository.kind.removesuffix("s")},
    }


def main() -> None:
    from hub_datasets import dataset_repositories
    from hub_models import model_repositories

    with Hub(model_repositories() + dataset_repositories()) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        try:
            hub.closing.wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
