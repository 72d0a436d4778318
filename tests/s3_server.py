"""An S3 server on loopback that can be told to fail: `python tests/s3_server.py PORT`.

moto's server, behind `/-/be/MODE`, which answers with the number of requests that were disturbed
so far. MODE is `500`, `503`, `slow` (every answer takes some seconds), `forgetful` (it deletes what
it is told to, and answers 500), `without-shards` (503 where a Parquet file is asked for) or `well`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

SLOW_SECONDS = 4
CODES = {
    "500": ("500", "InternalError"),
    "503": ("503", "SlowDown"),
    "without-shards": ("503", "SlowDown"),
}


class FaultyStore:
    def __init__(self) -> None:
        self._store = DomainDispatcherApplication(create_backend_app)
        self._mode, self._num_disturbed = "well", 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/-/be/"):
            self._mode = path.rsplit("/", 1)[1]
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(self._num_disturbed).encode()]
        is_spared = self._mode == "without-shards" and not path.endswith(".parquet")
        if self._mode == "well" or is_spared:
            return self._store(environ, start)
        self._num_disturbed += 1
        if self._mode == "forgetful" and environ["REQUEST_METHOD"] == "DELETE":
            list(self._store(environ, lambda *_: None))
            return self._error("500", start)
        if self._mode in CODES:
            # What was sent has to be read, or the connection breaks off instead.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._error(self._mode, start)
        if self._mode == "slow":
            time.sleep(SLOW_SECONDS)
        return self._store(environ, start)

    @staticmethod
    def _error(mode: str, start: Callable[..., Any]) -> Iterable[bytes]:
        number, code = CODES[mode]
        body = f"<Error><Code>{code}</Code><Message>-</Message></Error>"
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start(f"{number} {code}", headers)
        return [body.encode()]


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), FaultyStore(), threaded=True, request_handler=Quiet)
