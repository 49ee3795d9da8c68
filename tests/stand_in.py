"""A stand-in for the Hugging Face hub: the endpoints that huggingface_hub uses, on this machine."""

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
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.private: set[str] = set()
        self.asked: list[str] = []
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

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches[repository].get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


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

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        told = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = told or file
        repository = found[1] if found else ""
        allowed = self.headers["authorization"] == f"Bearer {TOKEN}"
        if repository not in self.hub.branches or (repository in self.hub.private and not allowed):
            return self.missing("Repo")
        revision = (told[3] or "main") if told else file[2]
        there = self.hub.files(repository, revision)
        if there is None:
            return self.missing("Revision")
        commit, files = there
        if file:
            return self.give(commit, files.get(file[3]))
        if told[2] == "tree":
            return self.answer(200, [entry(*each) for each in files.items()])
        told = {"id": repository, "sha": commit, "private": repository in self.hub.private}
        told |= {"downloads": 0, "likes": 0, "tags": []}
        self.answer(200, told | {"siblings": [{"rfilename": name} for name in files]})

    def give(self, commit: str, content: bytes | None) -> None:
        if content is None:
            return self.missing("Entry")
        headers = {"ETag": f'"{git_digest(content)}"', "X_Repo_Commit": commit}
        self.answer(200, content, **headers)

    def do_PUT(self):
        content, oid = self.body(), self.path.rsplit("/", 1)[1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {"error": "its SHA-256 differs"})
        self.hub.large[oid] = content
        self.answer(200)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self):
        content, path = self.body(), unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            error = {"error": "Invalid username or password."}
            return self.answer(401, error, X_Error_Message=error["error"])
        if path == "/api/repos/create":
            given = json.loads(content)
            name = f"{given['organization']}/{given['name']}"
            private = given.get("private") or given.get("visibility") == "private"
            made = self.hub.create(name, bool(private))
            return self.answer(200 if made else 409, {"url": f"{self.hub.address}/{name}"})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            wanted = map(self.wanted, json.loads(content)["objects"])
            return self.answer(200, {"objects": [*wanted]})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if not found or found[1] not in self.hub.branches:
            return self.missing("Repo")
        branches, revision = self.hub.branches[found[1]], found[3]
        if found[2] == "branch":
            status = 409 if revision in branches else 200
            branches.setdefault(revision, branches["main"])
            return self.answer(status, {})
        if revision not in branches:
            return self.missing("Revision")
        if found[2] == "preupload":
            return self.answer(200, {"files": [*map(mode, json.loads(content)["files"])]})
        files = dict(self.hub.commits[branches[revision]])
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        branches[revision] = commit = self.hub.commit(files)
        address = f"{self.hub.address}/{found[1]}/commit/{commit}"
        self.answer(200, {"commitUrl": address, "commitOid": commit})

    def wanted(self, each: dict) -> dict:
        """What is to be uploaded of a large file: all, unless it is there."""
        known = each["oid"] in self.hub.large
        action = {"upload": {"href": f"{self.hub.address}/large/{each['oid']}"}}
        return each if known else each | {"actions": action}


def mode(file: dict) -> dict:
    """How a file is to be uploaded."""
    way = "lfs" if large(file["path"]) else "regular"
    return {"path": file["path"], "uploadMode": way, "shouldIgnore": False}


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict:
    told = {"type": "file", "path": name, "size": len(content), "oid": git_digest(content)}
    if large(name):
        digest = hashlib.sha256(content).hexdigest()
        told["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return told


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
