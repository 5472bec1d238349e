"""Media: where an object lies, and how long a link may live."""

from __future__ import annotations

from dataclasses import dataclass

from heliograph.errors import TooLarge
from heliograph.shapes import JsonObject

DEFAULT_LINK_S = 300
UPLOAD_S = 900
MAX_UPLOAD_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Media:
    """A file as announced; `state` is `pending` until the stored bytes were verified, then `ready`."""

    tenant_id: str
    media_id: str
    room_id: str
    account_id: str
    file_name: str
    content_type: str
    length_bytes: int
    sha256: str  # hex
    state: str = "pending"

    @property
    def key(self) -> str:
        """The object key; ids only, so that no file name can leave its folder."""
        return f"{self.tenant_id}/{self.room_id}/{self.media_id}"

    def as_json(self) -> JsonObject:
        names = ("media_id", "room_id", "file_name", "content_type", "length_bytes", "sha256", "state")
        return {name: getattr(self, name) for name in names}


def announced(media: Media, max_bytes: int = MAX_UPLOAD_BYTES) -> Media:
    """The media, if it may be uploaded; TooLarge otherwise."""
    if media.length_bytes > max_bytes:
        raise TooLarge(f"A file may have at most {max_bytes} bytes.")
    return media
