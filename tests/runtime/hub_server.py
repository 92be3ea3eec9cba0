"""A stand-in for the Hugging Face Hub on loopback: what ``hf_hub_download`` asks of it, and no more.

HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE, with the headers and the error codes of the real
one (https://huggingface.co/docs/hub/api). As there, branches and tags are names of commits.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Repository:
    """Commits, and the names that they have.

    Attributes:
        commits: 40 hex digits -> file -> content.
        names: Branch or tag -> commit.
        error: Instead of an answer: HTTP's number and the Hub's code.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    error: tuple[int, str] | None = None

    def commit(self, files: dict[str, bytes], *names: str) -> str:
        """Add a commit; its number."""
        number = hashlib.sha1(b"".join(name.encode() + data for name, data in files.items()))
        self.commits[number.hexdigest()] = files
        self.names |= dict.fromkeys(names, number.hexdigest())
        return number.hexdigest()


class FakeHub:
    """The server; ``url`` is for HF_ENDPOINT.

    Attributes:
        repositories: "owner/name" -> what it has.
        requests: Method and path of every request, in their order.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                hub.requests.append((self.command, self.path))
                hub.headers.append(dict(self.headers))
                status, headers, data = hub.look_up(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def look_up(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        parts = path.split("?")[0].strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return 404, {}, b""
        repository = self.repositories.get("/".join(parts[:2]))
        if repository is None:  # as the Hub does for whoever has not said who he is
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if repository.error is not None:
            return repository.error[0], {"X-Error-Code": repository.error[1]}, b""
        revision = unquote(parts[3])
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": commit}
        data = repository.commits[commit].get("/".join(parts[4:]))
        if data is None:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        return 200, headers | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, data
