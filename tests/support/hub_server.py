"""The part of the hub that a snapshot download of one small dataset needs, on this machine."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve(name: str, files: dict[str, bytes]) -> ThreadingHTTPServer:
    """A server that is to be started; it has the dataset ``name`` with these files."""
    base = f"/datasets/{name}/resolve/{COMMIT}/"

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            content: bytes | None = None
            if path.startswith(f"/api/datasets/{name}/tree/"):
                listing = [
                    {"type": "file", "path": path, "size": len(data), "oid": COMMIT}
                    for path, data in files.items()
                ]
                content = json.dumps(listing).encode()
            elif path.startswith(f"/api/datasets/{name}"):
                siblings = [{"rfilename": path} for path in files]
                facts = {"id": name, "sha": COMMIT, "siblings": siblings}
                content = json.dumps(facts).encode()
            elif path.startswith(base):
                content = files.get(path.removeprefix(base))
            self.send_response(404 if content is None else 200)
            content = content or b"{}"
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Silence."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)
