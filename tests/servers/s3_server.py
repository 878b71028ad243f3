"""An S3 server on loopback: moto's, behind a door that counts requests, lets them fail, and looks at what there is."""

import hashlib
import io
import json
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request

BUCKET = "zoos"
SECRET = "a-secret-that-nobody-may-print-0123456789"

Door = Callable[[str, str], str | None]
"""Told method and object of a request; answers ``500``, ``reset``, ``reset after`` or nothing."""


class S3Server:
    """One bucket. `door` may be set to let requests fail; `broken` lists every state that no reader may ever see."""

    def __init__(self) -> None:
        self.door: Door = lambda method, name: None
        self.after: Callable[[str, str], None] = lambda method, name: None
        """Called after a request that changes something, while no other one is carried out."""
        self.requests: list[tuple[str, str]] = []
        self.broken: list[str] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._backend.reset()
        self._backend.create_bucket(BUCKET, "us-east-1")

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def _backend(self) -> Any:
        return s3_backends["123456789012"]["aws"]

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return the objects of the bucket below a prefix."""
        keys = self._backend.buckets[BUCKET].keys
        return {name.removeprefix(prefix): keys[name].value for name in list(keys) if name.startswith(prefix)}

    def put(self, name: str, data: bytes) -> None:
        """Put an object past the door."""
        self._backend.put_object(BUCKET, name, data)

    def remove(self, name: str) -> None:
        """Remove an object past the door."""
        self._backend.delete_object(BUCKET, name)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, name = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        self.requests.append((method, name))
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        fault = self.door(method, name)
        if fault == "500":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if fault == "reset":
            return _reset(environ)
        if method in ("GET", "HEAD"):
            return list(self._app(environ, start_response))
        # One after the other: what moto compares and puts is not one step by itself, as it is on S3.
        with self._lock:
            result = list(self._app(environ, start_response))
            self._look(name)
            self.after(method, name)
        return _reset(environ) if fault == "reset after" else result

    def _look(self, changed: str) -> None:
        """Note when a record or manifest is there without all that it names."""
        prefix = changed.partition("/")[0] + "/"
        objects = self.objects(prefix)
        for name, data in objects.items():
            if name.endswith(".record"):
                named = json.loads(data.partition(b"\n")[0])["shards"]
            elif name == "zoo.json":
                named = json.loads(data)["files"]
            else:
                continue
            for file, info in named.items():
                if file not in objects:
                    self.broken.append(f"{changed}: {name} names {file}, which is not there")
                elif hashlib.sha256(objects[file]).hexdigest() != info["sha256"]:
                    self.broken.append(f"{changed}: {name} names {file}, which is another one")


def _reset(environ: dict[str, Any]) -> Iterable[bytes]:
    connection = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A running server with one empty bucket."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
