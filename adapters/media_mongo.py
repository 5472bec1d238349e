"""Announced and completed files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapters.mongo_client import translated
from heliograph.errors import IdTaken
from heliograph.links import Media


class MediaRecords:
    def __init__(self, database: Any) -> None:
        self._media = database.media

    def create(self, media: Media, now_ms: int) -> None:
        """Stores an announced file; IdTaken when the tenant has one of that id."""
        from pymongo.errors import DuplicateKeyError

        document = {name: getattr(media, name) for name in Media.__slots__} | {"created_at_ms": now_ms, "schema_version": 1}
        try:
            with translated():
                self._media.insert_one(document)
        except DuplicateKeyError:
            raise IdTaken from None

    def get(self, tenant_id: str, media_id: str) -> Media | None:
        with translated():
            found = self._media.find_one({"tenant_id": tenant_id, "media_id": media_id})
        return Media(**{name: found[name] for name in Media.__slots__}) if found else None

    def make_ready(self, media: Media, now_ms: int) -> tuple[Media, bool]:
        """(the media as ready, whether this call made it so)."""
        with translated():
            changed = self._media.update_one(
                {"tenant_id": media.tenant_id, "media_id": media.media_id, "state": "pending"}, {"$set": {"state": "ready", "ready_at_ms": now_ms}}
            )
        return replace(media, state="ready"), changed.modified_count == 1
