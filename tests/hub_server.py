"""A local server with the endpoints of the Hugging Face hub that huggingface_hub uses."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
FIRST = {".gitattributes": b""}  # files of a new repository


class Hub:
    """Repositories: of each its branches, and of each commit its files."""

    def __init__(self):
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.address = ""

    def create(self, repository: str, private: bool) -> bool:
        if repository in self.branches:
            return False
        self.branches[repository] = {"main": self.commit(FIRST)}
        self.private |= {repository} if private else set()
        return True

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr([len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits[name] = files
        return name

    def files(self, repository: str, branch: str) -> dict[str, bytes]:
        return self.commits[self.branches[repository][branch]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content))} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def is_allowed(self) -> bool:
        return self.headers["authorization"] == f"Bearer {TOKEN}"

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        model = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = (model or file or [None, ""])[1]
        is_allowed = self.is_allowed() or repository not in self.hub.private
        if repository not in self.hub.branches or not is_allowed:
            return self.missing("Repo")
        revision = (model[3] or "main") if model else file[2]
        commit = self.hub.branches[repository].get(revision, revision)
        if commit not in self.hub.commits:
            return self.missing("Revision")
        files = self.hub.commits[commit]
        if file and file[3] not in files:
            return self.missing("Entry")
        if file:
            content = files[file[3]]
            return self.answer(200, content, ETag=f'"{digest(content)}"', X_Repo_Commit=commit)
        if model[2] == "tree":
            return self.answer(200, [entry(*each) for each in files.items()])
        facts = {"id": repository, "sha": commit, "private": repository in self.hub.private}
        facts |= {"downloads": 0, "likes": 0, "tags": []}
        self.answer(200, facts | {"siblings": [{"rfilename": name} for name in files]})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        size = None
        while size != 0:
            size = int(self.rfile.readline(), 16)
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def do_POST(self):
        content = self.body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if not self.is_allowed():
            error = {"error": "Invalid username or password."}
            return self.answer(401, error, X_Error_Message=error["error"])
        if path == "/api/repos/create":
            settings = json.loads(content)
            name = f"{settings['organization']}/{settings['name']}"
            private = settings.get("private") or settings.get("visibility") == "private"
            is_new = self.hub.create(name, bool(private))
            return self.answer(200 if is_new else 409, {"url": f"{self.hub.address}/{name}"})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        repository, action, revision = match.groups() if match else ("", "", "")
        if repository not in self.hub.branches:
            return self.missing("Repo")
        branches = self.hub.branches[repository]
        if action == "branch":
            status = 409 if revision in branches else 200
            branches.setdefault(revision, branches["main"])
            return self.answer(status, {})
        if revision not in branches:
            return self.missing("Revision")
        if action == "preupload":
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **mode} for file in json.loads(content)["files"]]
            return self.answer(200, {"files": files})
        files = dict(self.hub.commits[branches[revision]])
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        commit = self.hub.commit(files)
        branches[revision] = commit
        address = f"{self.hub.address}/{repository}/commit/{commit}"
        self.answer(200, {"commitUrl": address, "commitOid": commit})


def digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict:
    return {"type": "file", "path": name, "size": len(content), "oid": digest(content)}


@contextmanager
def served():
    """A hub that answers at its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
