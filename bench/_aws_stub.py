"""AWS as a warm function sees it: takes posts to sockets and messages to queues, hands out MongoDB's URI and the secrets it was given.

No delay, no check of signatures.

`python -m bench._aws_stub MONGODB_URI` prints its URL. GET /posted answers with what sockets were sent since the last time it was asked.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque

_posted: deque[str] = deque(maxlen=10_000)
_secrets: dict[str, str] = {}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            answer = _answer(head[0], headers.get("x-amz-target", ""), body.decode())
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _answer(request: str, target: str, body: str) -> bytes:
    if "/@connections/" in request:
        if request.startswith("POST"):
            _posted.append(body)
        return b""
    if target.endswith("GetSecretValue"):
        return json.dumps({"SecretString": _secrets.get(json.loads(body)["SecretId"]) or json.dumps({"uri": sys.argv[1]})}).encode()
    if target.endswith("PutSecretValue"):
        _secrets[json.loads(body)["SecretId"]] = json.loads(body)["SecretString"]
        return b"{}"
    if target.endswith("SendMessage"):
        return json.dumps({"MessageId": "1"}).encode()  # without MD5OfMessageBody boto3 checks none
    found = json.dumps(list(_posted)).encode()
    _posted.clear()
    return found


async def main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
