"""Secrets Manager with one secret, for tests that change it under a running function. The words of its refusals are those of AWS."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Secrets(http.server.ThreadingHTTPServer):
    """One secret: MongoDB's `uri`, or the whole `text`, read `reads` times. With neither it has no value; a secret `missing` is not there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.uri, self.text, self.reads, self.hangs_s = "", "", 0, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Asked(http.server.BaseHTTPRequestHandler):
    server: Secrets

    def do_POST(self) -> None:
        secret_id = json.loads(self.rfile.read(int(self.headers["content-length"])))["SecretId"]
        self.server.reads += 1
        time.sleep(self.server.hangs_s)
        text = self.server.text or (json.dumps({"uri": self.server.uri}) if self.server.uri else "")
        found = text and secret_id != "missing"
        missing = "" if secret_id == "missing" else " value for staging label: AWSCURRENT"
        refusal = {"__type": "ResourceNotFoundException", "Message": f"Secrets Manager can't find the specified secret{missing}."}
        body = json.dumps({"SecretString": text} if found else refusal).encode()
        self.send_response(200 if found else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def secrets_stub() -> Iterator[Secrets]:
    server = Secrets()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
