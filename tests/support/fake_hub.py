"""A Hugging Face hub of one process: repositories with commits, over the HTTP the real client speaks.

Knows what `HfApi` asks to create a repository or a branch, commit files, and download them. Files are kept in
memory; every request is written down in `requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_nobody"


class FakeHub:
    """repositories: name -> {"private", "branches": {branch: commit}, "commits": {commit: {path: bytes}}}."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main", private: bool = False) -> str:
        """Add files to a branch of a repository, which is made if need be."""
        found = self.repositories.setdefault(repo, {"private": private, "branches": {}, "commits": {}})
        before = found["commits"].get(found["branches"].get(branch), {})
        tree = {**before, **files}
        text = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in sorted(tree.items())})
        sha = hashlib.sha1(f"{len(found['commits'])}{text}".encode()).hexdigest()
        found["commits"][sha] = tree
        found["branches"][branch] = sha
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[repo]
        files: dict[str, bytes] = found["commits"][found["branches"].get(revision, revision)]
        return files

    def downloaded(self) -> set[str]:
        """Paths of the files that were asked for."""
        found = (re.search(r"/resolve/\w+/(.*)$", line) for line in self.requests)
        return {match[1] for match in found if match}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            if name in self.hub.repositories:
                self._json(409, {"error": "You already created this model repo", "url": self._url(name)})
                return
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.commit(name, {".gitattributes": b""}, private=private)
            self._json(200, {"url": self._url(name), "name": name})
        elif match := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            branches = self.hub.repositories[match[1]]["branches"]
            if match[2] in branches:
                self._json(409, {"error": "Reference already exists"})
                return
            branches[match[2]] = branches["main"]
            self._json(200, {})
        elif path == "/api/validate-yaml":
            header = json.loads(body)["content"].split("---\n")[1]
            known = {"library_name", "tags", "base_model"}
            wrong = [line for line in header.splitlines() if not line.startswith("- ") and
                     line.partition(":")[0] not in known]  # fmt: skip
            errors = [{"message": f"unknown: {line}"} for line in wrong]
            self._json(400 if errors else 200, {"errors": errors, "warnings": []})
        elif re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            asked = json.loads(body)["files"]
            answer = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked
            ]
            self._json(200, {"files": answer})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            sha = self.hub.commit(match[1], files, match[2])
            url = f"{self._url(match[1])}/commit/{sha}"
            self._json(200, {"success": True, "commitOid": sha, "commitUrl": url})
        else:
            self._json(404, {"error": path})

    def _get(self) -> None:
        path = self._path()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if (sha := self._sha(match[1], match[2] or "main")) is not None:
                siblings = [{"rfilename": name} for name in self.hub.files(match[1], sha)]
                self._json(200, {"id": match[1], "modelId": match[1], "sha": sha, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (sha := self._sha(match[1], match[2])) is not None:
                files = self.hub.files(match[1], sha).items()
                self._json(200, [_entry(name, data) for name, data in files])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (sha := self._sha(match[1], match[2])) is not None:
                data = self.hub.files(match[1], sha)[match[3]]
                etag = hashlib.sha1(data).hexdigest()
                self._send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, "application/octet-stream")
        elif path == "/api/whoami-v2":
            self._json(200, {"name": "owner", "type": "user"})
        else:
            self._json(404, {"error": path})

    def _sha(self, repo: str, revision: str) -> str | None:
        """The commit, or None once an error has been sent."""
        found = self.hub.repositories.get(repo)
        if found is None:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        sha = found["branches"].get(revision, revision)
        if sha not in found["commits"]:
            self._json(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return str(sha)

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _url(self, repo: str) -> str:
        return f"{self.hub.endpoint}/{repo}"

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {}, "application/json")

    def _send(self, status: int, data: bytes, headers: dict[str, str], kind: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def at(hub: FakeHub) -> dict[str, Any]:
    """What push and pull are told to reach the hub."""
    return {"endpoint": hub.endpoint, "token": TOKEN}
