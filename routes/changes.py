"""What has changed since a position: as pages, and as a stream of them (contract section 9)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Field, WithJsonSchema

from auth import Owner
from database import Database
from fields import MAX_ID, PLAIN_DECIMAL
from openapi import headers, refusals
from queries.tasks import read_position
from routes.answers import answer, changes_since, unchanged
from routes.etags import IfNoneMatch, body_etag, list_etag, not_modified
from routes.live import Live, LiveRoute, Stream, wants_stream
from schemas import Changes, Since

Known = Annotated[Since, Query()]
LastEventId = Annotated[
    Annotated[int, Field(ge=0, le=MAX_ID), PLAIN_DECIMAL] | None,
    WithJsonSchema({"type": "string", "pattern": "^(0|[1-9][0-9]{0,14})$"}),
    Header(alias="Last-Event-ID", description="Of a stream: as `since`, where that is less."),
]


def add_changes(
    router: APIRouter, database: Database, owner: Callable[..., Any], live: Live
) -> None:
    """Give the router of a mount the route of changes."""

    async def get_task_changes(
        request: Request,
        whose: Annotated[Owner, Depends(owner)],
        known: Known,
        if_none_match: IfNoneMatch = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        """Every task that has changed since a position, as it is now, oldest change first.

        The next call sends `since=` the `position` of the answer. With `Accept: text/event-stream`
        such answers come as events named `changes`, each change as it happens.
        """
        if wants_stream(request):
            since = max(known.since, known.last_event_id, last_event_id or 0)
            known = Since(since=since, limit=known.limit)
            check = partial(owner, request, **request.path_params)
            return Stream(live, whose, known, check)
        query = request.scope["query_string"]
        content = (whose.user_id, database.identity, whose.url, query)
        if if_none_match is not None:
            etag = list_etag(await position_of(database, whose), *content)
            if not_modified(if_none_match, etag):
                return unchanged(etag, Vary="Accept")
        position, more, body = await changes_since(database, whose, known)
        # What is forgotten changes where a page ends before the last, and raises no position.
        etag = body_etag(body) if more else list_etag(position, *content)
        return answer(body, {"Vary": "Accept"}, etag, if_none_match)

    router.add_api_route(
        "/changes",
        get_task_changes,
        response_model=Changes,
        # The stream is said in words: as a second type of the answer it would be everybody's.
        responses={200: headers("ETag"), **refusals(304, 410)},
        route_class_override=LiveRoute,
    )


async def position_of(database: Database, whose: Owner) -> int:
    """Return the user's position."""
    rows, _ = await database.run(read_position(whose.user_id))
    return rows[0][0] if rows else 1
