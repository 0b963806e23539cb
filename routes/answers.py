"""What the routes of tasks answer with: rows as JSON, their tags, and what may be kept of it."""

import asyncio
from typing import Any, Final

from fastapi import Response
from pydantic_core import to_json

from auth import Owner
from database import PIECE, Database
from errors import ApiError
from models import ROW
from queries import changes
from routes.etags import not_modified
from schemas import Since

_VERSION: Final = len(ROW) - 1
_FIELDS: Final = tuple(column.name for column in ROW[:_VERSION])
_DELETED: Final = _FIELDS.index("deleted")
# An answer may be kept, and asked about by its ETag.
_PRIVATE: Final = {"Cache-Control": "private, no-cache"}


def task_fields(row: tuple[Any, ...], whose: Owner) -> dict[str, Any]:
    """Return the task that a row begins with (`models.ROW`)."""
    etag, url = f'"{row[_VERSION]}"', f"{whose.url}/{row[0]}"
    return dict(zip(_FIELDS, row, strict=False), etag=etag, url=url)


async def changes_since(database: Database, whose: Owner, known: Since) -> tuple[int, bool, bytes]:
    """Return one page of a user's changes (`schemas.Changes`), or raise 410.

    That is its position, whether there is more, and all of it as JSON. A bulk change of very many
    tasks is one page, so it is made in pieces.
    """
    rows, _ = await database.run(changes.read_changes(whose.user_id, known))
    position, forgotten, more, end = rows[0][len(ROW) :] if rows else (1, 0, False, None)
    if known.since > position or 0 < known.since < forgotten:
        raise ApiError(410, "What has changed since then is no longer known; begin again at 0.")
    position = end if more else position
    pieces = []
    for start in range(0, len(rows), PIECE):
        if start:
            await asyncio.sleep(0)  # a turn for everybody else
        told = [_change(row, whose) for row in rows[start : start + PIECE] if row[0] is not None]
        pieces.append(to_json(told)[1:-1])
    end_of_page = to_json({"position": position, "more": more})
    return position, more, b'{"changes":[%b],%b' % (b",".join(pieces), end_of_page[1:])


def _change(row: tuple[Any, ...], whose: Owner) -> dict[str, Any]:
    if row[_DELETED] is None:
        return {"id": row[0], "uid": row[1], "deleted": True, "gone": True}
    return task_fields(row, whose)


def answer(
    body: bytes, headers: dict[str, str], etag: str, if_none_match: str | None, status: int = 200
) -> Response:
    """Return an answer that may be kept, or 304 to whoever has kept it."""
    if if_none_match is not None and not_modified(if_none_match, etag):
        return unchanged(etag, **headers)
    return Response(body, status, {**headers, **_PRIVATE, "ETag": etag}, "application/json")


def unchanged(etag: str, **headers: str) -> Response:
    """Return the answer that says that the one with this tag is still good."""
    return Response(status_code=304, headers={**headers, **_PRIVATE, "ETag": etag})


def json_answer(content: Any, status: int = 200) -> Response:
    """Return an answer without a tag."""
    return Response(to_json(content), status, media_type="application/json")
