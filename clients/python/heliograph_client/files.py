"""Sending a file to a room: announced, put to the store, verified by the server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mimetypes
from pathlib import Path

import aiohttp

from .errors import parse_error
from .ids import make_id
from .rest import Rest


async def upload(rest: Rest, http: aiohttp.ClientSession, room_id: str, path: Path) -> str:
    """The media_id, once the server verified the checksum."""
    digest, length_bytes = await asyncio.to_thread(_digest, path)
    media_id = make_id("med")
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    body = {"media_id": media_id, "room_id": room_id, "file_name": path.name, "content_type": content_type, "length_bytes": length_bytes, "sha256": digest}
    target = (await rest.call("POST", "/v1/media", body))["upload"]
    file = await asyncio.to_thread(path.open, "rb")
    with contextlib.closing(file):
        async with http.request(target.get("method", "PUT"), target["url"], data=file, headers=target.get("headers", {})) as response:
            if response.status >= 300:
                raise parse_error({"message": f"The store refused the upload: {(await response.text())[:200]}"}, response.status)
    await rest.call("POST", f"/v1/media/{media_id}/complete")
    return media_id


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
