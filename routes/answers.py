"""What the routes of tasks answer with: a row as JSON, its tags, and what may be kept of it."""

from typing import Any, Final

from fastapi import Response
from pydantic_core import to_json

from auth import Owner
from models import ROW
from routes.etags import not_modified

_VERSION: Final = len(ROW) - 1
_FIELDS: Final = tuple(column.name for column in ROW[:_VERSION])
# An answer may be kept, and asked about by its ETag.
_PRIVATE: Final = {"Cache-Control": "private, no-cache"}


def task_fields(row: tuple[Any, ...], whose: Owner) -> dict[str, Any]:
    """Return the task that a row begins with (`models.ROW`)."""
    etag, url = f'"{row[_VERSION]}"', f"{whose.url}/{row[0]}"
    return dict(zip(_FIELDS, row, strict=False), etag=etag, url=url)


def answer(
    body: bytes, headers: dict[str, str], etag: str, if_none_match: str | None, status: int = 200
) -> Response:
    """Return an answer that may be kept, or 304 to whoever has kept it."""
    if if_none_match is not None and not_modified(if_none_match, etag):
        return unchanged(etag)
    return Response(body, status, {**headers, **_PRIVATE, "ETag": etag}, "application/json")


def unchanged(etag: str, **headers: str) -> Response:
    """Return the answer that says that the one with this tag is still good."""
    return Response(status_code=304, headers={**headers, **_PRIVATE, "ETag": etag})


def json_answer(content: Any, status: int = 200) -> Response:
    """Return an answer without a tag."""
    return Response(to_json(content), status, media_type="application/json")
