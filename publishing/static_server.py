"""Serve the files of a static Space as the Hub does, with the headers that its card asks for."""

import mimetypes
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import RepoCard

from publishing.static_space import PAGE

TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


@contextmanager
def serving(files: Mapping[str, Path | str], sent: list[str] | None = None) -> Iterator[str]:
    """Serve files, or texts, by their paths, and give the address.

    Args:
        files: By their paths.
        sent: Filled with the path of each answer.
    """
    headers = {**RepoCard.load(PAGE / "README.md").data.to_dict()["custom_headers"], "access-control-allow-origin": "*"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
            file = files.get(path)
            content = file.encode() if isinstance(file, str) else file.read_bytes() if file else b""
            self.send_response(200 if file else 404)
            kind = TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
            for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if sent is not None:
                sent.append(path)
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
