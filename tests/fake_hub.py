"""A hub on loopback with what an upload needs: create, describe and fill a repository."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_0123456789abcdefghijklmnopqrstuvwx"
USER = "me"


class FakeHub:
    """Keeps the files of every repository by name; `refuse` maps part of a path to a status."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.paths: list[str] = []
        self.refuse: dict[str, int] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(*fake.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.reply(401, {"error": "Invalid username or password."})
                return self.reply(*fake.post(self.path, body))

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        self.paths.append(path)
        name = _name_in(path.split("?")[0]).removesuffix("/revision/main")
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "private": self.private[name]}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        self.paths.append(path)
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "refused"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name, action = _name_in(path).rsplit("/", 2)[:2]
        return self.preupload(body) if action == "preupload" else self.commit(name, body)

    def create(self, asked: Any) -> tuple[int, Any]:
        name = f"{asked['organization'] or USER}/{asked['name']}"
        status = 409 if name in self.private else 200
        self.private.setdefault(name, asked.get("visibility") == "private")
        self.files.setdefault(name, {})
        return status, {"url": f"{self.url}/{name}", "name": name}

    def preupload(self, body: bytes) -> tuple[int, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        return 200, {
            "files": [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]
        }

    def commit(self, name: str, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.files[name][value["path"]] = base64.b64decode(value["content"])
        return 200, {"commitUrl": f"{self.url}/{name}/commit/0", "commitOid": "0" * 40}


def _name_in(path: str) -> str:
    """What stands behind the kind of repository; datasets have their own."""
    return path.removeprefix("/api/models/").removeprefix("/api/datasets/")
