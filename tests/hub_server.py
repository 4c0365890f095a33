"""A Hugging Face Hub for tests: a server in a thread that keeps repositories in memory and speaks the Hub's protocol.

What the client of huggingface_hub does is what it does with the real Hub: it learns who it is, creates repositories,
asks which files go to LFS, uploads those, sends one commit as NDJSON, lists trees page by page and resolves files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".flac", ".png", ".bin", ".pt", ".ckpt")
PAGE = 1000
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other")


@dataclass
class Commit:
    """Files by path, and the message."""

    files: dict[str, bytes]
    message: str


@dataclass
class Repository:
    """Commits by id, and what branches and tags point to."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Point a branch at new files."""
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[oid] = Commit(files, message)
        self.refs[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag, or itself."""
        found = self.refs.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """The server.

    Attributes:
        tokens: Users by token.
        failing: Steps that fail from now on: ``upload`` (of LFS files), ``commit``.
        faults: By pattern of "METHOD path", what answers such a request instead.
        spoiled: By pattern of a path, what becomes of the bytes of its answer.
        requests: Method and path of everything that was asked.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.failing: set[str] = set()
        self.faults: dict[str, Callable[[_Handler], None]] = {}
        self.spoiled: dict[str, Callable[[bytes], bytes]] = {}
        self.closing = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}"  # another host, as that of large files is
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo_id: str, files: dict[str, bytes], **kind: bool) -> str:
        """A repository with these files, as if somebody had pushed them."""
        repository = self.repositories.setdefault(repo_id, Repository(**kind))
        return repository.commit("main", files, "by hand")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every body waits until the client has acknowledged its headers

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        body = self._body()
        self.hub.requests.append((self.command, url.path))
        for pattern, fault in self.hub.faults.items():
            if re.search(pattern, f"{self.command} {url.path}"):
                try:
                    fault(self)
                except OSError:  # the client has gone
                    self.close_connection = True
                return
        try:
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method.split():
                    answer(self, body, *(unquote(group) for group in match.groups()))
                    return
            raise Refused(404, f"no route {self.command} {url.path}")
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self._json({"error": str(refused)}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 (names of http.server)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        for pattern, spoil in self.hub.spoiled.items():
            if self.command == "GET" and re.search(pattern, urlsplit(self.path).path):
                content = spoil(content)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def _readable(self, repo_id: str, content: bool = False) -> Repository:
        user, repository = self._user(), self.hub.repositories.get(repo_id)
        mine = user == repo_id.split("/")[0]
        if repository is None or (repository.private and not mine):
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if content and repository.gated and not mine:
            raise Refused(403, "Access to this model is restricted", "GatedRepo")
        return repository

    def _writable(self, repo_id: str) -> Repository:
        repository = self._readable(repo_id)
        if self._user() != repo_id.split("/")[0]:
            raise Refused(403, "Authorization error: you have no write access to this repository")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> tuple[str, Commit]:
        oid = repository.find(revision)
        if oid is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repository.commits[oid]

    def whoami(self, body: bytes) -> None:
        user = self._user()
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        self._json({"type": "user", "name": user, "orgs": []})

    def create(self, body: bytes) -> None:
        wanted, user = json.loads(body), self._user()
        owner = wanted["organization"] or user
        repo_id = f"{owner}/{wanted['name']}"
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if owner != user:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        repository = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repositories[repo_id] = repository
        return self._json({"url": url, "name": repo_id, "id": "0"})

    def validate(self, body: bytes) -> None:
        license = re.search(r"^license: (.*)$", json.loads(body)["content"].split("---")[1], re.MULTILINE)
        if license is None or license[1] in LICENSES:
            return self._json({"errors": [], "warnings": []})
        wrong = f'"license" must be one of [{", ".join(LICENSES)}]'
        return self._json({"error": wrong, "errors": [{"message": wrong}], "warnings": []}, 400)

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        _, commit = self._commit_of(self._writable(repo_id), revision)
        files = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES)
            old = commit.files.get(file["path"])
            oid = None if old is None else _sha256(old) if lfs else _git_sha1(old)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, body: bytes, repo_id: str) -> None:
        self._writable(repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.storage}/storage/{wanted['oid']}"}
            verify = {"href": f"{self.hub.url}/verify/{wanted['oid']}"}
            missing = wanted["oid"] not in self.hub.objects
            objects.append(wanted | ({"actions": {"upload": upload, "verify": verify}} if missing else {}))
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if "upload" in self.hub.failing:
            raise Refused(403, "the signature of the upload has expired")
        if _sha256(body) != oid:
            raise Refused(400, "the content is not what its hash says")
        self.hub.objects[oid] = body
        self._send(b"", 200, {"ETag": f'"{oid}"'})

    def verify(self, body: bytes, oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise Refused(404, "no such object")
        self._json({})

    def commit(self, body: bytes, repo_id: str, branch: str) -> None:
        repository = self._writable(repo_id)
        _, before = self._commit_of(repository, branch)
        if "commit" in self.hub.failing:
            raise Refused(500, "Internal Error - We're working hard to fix this as soon as possible!")
        files, message = dict(before.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.hub.objects:
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case _:
                    raise Refused(400, f"cannot commit {item}")
        oid = repository.commit(branch, files, message)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"})

    def info(self, body: bytes, repo_id: str, revision: str = "main") -> None:
        repository = self._readable(repo_id)
        oid, commit = self._commit_of(repository, revision)
        described = {"id": repo_id, "sha": oid, "private": repository.private}
        if "expand" not in self.query:
            described["siblings"] = [{"rfilename": name} for name in commit.files]
        self._json(described)

    def tree(self, body: bytes, repo_id: str, revision: str) -> None:
        _, commit = self._commit_of(self._readable(repo_id), revision)
        start = int(self.query.get("cursor", ["0"])[0])
        page = list(commit.files.items())[start : start + PAGE]
        fusions = [_entry(path, content) for path, content in page]
        after = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
        more = start + PAGE < len(commit.files)
        self._json(fusions, 200, {"Link": f'<{after}>; rel="next"'} if more else {})

    def refs(self, body: bytes, repo_id: str) -> None:
        repository = self._readable(repo_id)
        kinds = (("branches", "num_heads", repository.refs), ("tags", "tags", repository.tags))
        listed = {
            kind: [{"name": n, "ref": f"refs/{ref}/{n}", "targetCommit": oid} for n, oid in found.items()]
            for kind, ref, found in kinds
        }
        self._json({"converts": [], **listed})

    def branch(self, body: bytes, repo_id: str, name: str) -> None:
        repository = self._writable(repo_id)
        if name in repository.refs:
            raise Refused(409, f"Reference already exists: {name}")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repository.refs[name] = self._commit_of(repository, start)[0]
        self._json({})

    def tag(self, body: bytes, repo_id: str, revision: str) -> None:
        repository, name = self._writable(repo_id), json.loads(body)["tag"]
        if name in repository.tags:
            raise Refused(409, f"Tag reference exists already: {name}")
        repository.tags[name] = self._commit_of(repository, revision)[0]
        self._json({})

    def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> None:
        oid, commit = self._commit_of(self._readable(repo_id, content=True), revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content, headers = commit.files[path], {"X-Repo-Commit": oid}
        if path.endswith(LFS_SUFFIXES):
            digest = _sha256(content)
            self.hub.objects[digest] = content
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._send(b"", 302, headers | linked | {"Location": f"{self.hub.storage}/storage/{digest}"})
        else:
            self._send(content, 200, headers | {"ETag": f'"{_git_sha1(content)}"'})

    def storage(self, body: bytes, oid: str) -> None:
        if oid not in self.hub.objects:
            raise Refused(404, "no such object")
        content, status, headers = self.hub.objects[oid], 200, {"ETag": f'"{oid}"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            content, status = content[start : stop + 1], 206
        self._send(content, status, headers)


def refusing(status: int, **headers: str) -> Callable[[_Handler], None]:
    """A fault: an answer with this status and these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler._json({"error": "not now"}, status, named)


def silent(handler: _Handler) -> None:
    """A fault: no answer, ever."""
    handler.close_connection = True
    handler.hub.closing.wait()


def dripping(start: bytes) -> Callable[[_Handler], None]:
    """A fault: an answer that begins so, and goes on a letter at a time, for ever."""

    def drip(handler: _Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(start)
        while not handler.hub.closing.wait(0.02):
            handler.wfile.write(b"a")

    return drip


def login_page(handler: _Handler) -> None:
    """A fault: what a proxy answers in the place of everything."""
    handler._send(b"<html><body>Please log in</body></html>", 200, {"Content-Type": "text/html"})


_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _Handler.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/storage/(\w+)", _Handler.upload),
    ("GET HEAD", r"/storage/(\w+)", _Handler.storage),
    ("POST", r"/verify/(\w+)", _Handler.verify),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _Handler.commit),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", _Handler.branch),
    ("POST", r"/api/models/([^/]+/[^/]+)/tag/([^/]+)", _Handler.tag),
    ("GET", r"/api/models/([^/]+/[^/]+)/refs", _Handler.refs),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", _Handler.tree),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", _Handler.info),
    ("GET", r"/api/models/([^/]+/[^/]+)", _Handler.info),
    ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def _entry(path: str, content: bytes) -> dict[str, object]:
    fusion: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    if path.endswith(LFS_SUFFIXES):
        fusion["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
    return fusion


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
