"""A mirror on loopback with configurable faults, and manifests that name it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from ickd_pl.models import get_model

FILE = "{}_vanilla/ckpt_epoch_240.pth"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """Files by path, as bytes or as a function that sends the response; and the requested paths."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes | Answer] = {}
        self.asked: list[str] = []
        self.half = threading.Event()
        """Set when a stalled answer has sent its half."""
        self.go_on = threading.Event()
        """Stalled answers wait for it."""

    def cut(self, content: bytes, missing: int = 1000) -> Answer:
        return lambda handler: send(handler, content[:-missing], length=len(content))

    def stalled(self, content: bytes) -> Answer:
        """Half of the content, and the rest only after ``go_on`` is set."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            send(handler, content[: len(content) // 2], length=len(content))
            handler.wfile.flush()
            self.half.set()
            self.go_on.wait(60)
            handler.wfile.write(content[len(content) // 2 :])

        return answer

    def trickling(self, content: bytes, length: bool = True) -> Answer:
        """A few bytes now and then, so that the connection is never silent."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            send(handler, b"", length=len(content) if length else None)
            for start in range(0, len(content), 10):
                handler.wfile.write(content[start : start + 10])
                if self.go_on.wait(0.02):
                    return

        return answer


def send(handler: BaseHTTPRequestHandler, content: bytes, length: int | None, status: int = 200, **more: str) -> None:
    handler.send_response(status)
    for key, value in more.items():
        handler.send_header(key, value)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(content)


def page(status: int) -> Answer:
    text = b"<html><body>Sorry</body></html>"
    return lambda handler: send(handler, text, len(text), status)


def redirect(url: str) -> Answer:
    return lambda handler: send(handler, b"", 0, 302, Location=url)


@contextmanager
def serving() -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.asked.append(self.path)
            found = mirror.files.get(self.path, page(404))
            try:
                if isinstance(found, bytes):
                    send(self, found, len(found))
                else:
                    found(self)
            except OSError:  # the client has disconnected
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mirror = Mirror(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield mirror
    finally:
        mirror.go_on.set()
        server.shutdown()
        server.server_close()


def weights(name: str = "resnet8", num_classes: int = 100, seed: int = 0, **more: Any) -> bytes:
    """A published teacher's file: the old format, with a 0-d tensor as its accuracy."""
    torch.manual_seed(seed)
    content = {"epoch": 240, "model": get_model(name, num_classes).state_dict(), "best_acc": torch.tensor(70.5), **more}
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(sources: dict[str, list[Any]], hashes: dict[str, str] | None = None, path: str = "m.json") -> Path:
    """Entries with these sources: a URL, or a URL and a member."""
    teachers = {
        name: {
            "published_acc1": 70.5,
            "file": FILE.format(name),
            "sha256": (hashes or {}).get(name),
            "status": "recorded" if name in (hashes or {}) else "unverified",
            "measured_acc1": None,
            "recorded_from": None,
            "sources": [dict(zip(("url", "member"), [s] if isinstance(s, str) else s, strict=False)) for s in urls],
        }
        for name, urls in sources.items()
    }
    Path(path).write_text(json.dumps({"teachers": teachers}))
    return Path(path)


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), int(time.time())
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()
