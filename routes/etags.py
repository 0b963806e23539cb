"""Conditional requests: `ETag`, `If-Match`, `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1)."""

import re
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header
from pydantic import WithJsonSchema

from errors import invalid
from queries.tasks import Positions, Versions

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|$))+")
_VERSION = "[1-9][0-9]{0,15}"
_POSITION = f"({_VERSION})-%s-[0-9a-f]{{32}}"
_NEVER = (-1,)  # no version and no position is that
Conditions = tuple[str | None, str | None]  # what If-Match and If-None-Match say

_ENTITY_TAG = '(W/)?"[!#-~]*"'
_PATTERN = f"^([*]|{_ENTITY_TAG}( *, *{_ENTITY_TAG})*)$"
# One plain string: with alternatives some generators leave the whole call out.
_ENTITY_TAGS = WithJsonSchema({"type": "string", "format": "entity-tags", "pattern": _PATTERN})
_IF_MATCH = Header(
    alias="If-Match",
    description="The `ETag` that you know, of the task or, in bulk, a list; 412 if it has changed.",
)
IfMatch = Annotated[str | None, _ENTITY_TAGS, _IF_MATCH]
IfNoneMatch = Annotated[
    str | None,
    _ENTITY_TAGS,
    Header(alias="If-None-Match", description="The `ETag` of what you have; 304 if still good."),
]
UnlessAny = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "enum": ["*"]}),
    Header(alias="If-None-Match", description="`*`: only if there is nothing to change, so 412."),
]


def body_etag(body: bytes) -> str:
    """Return the strong tag of an answer by what is in it."""
    return f'"{_digest(body)}"'


def list_etag(position: int, user_id: str, database: str, *content: str | bytes) -> str:
    """Return the strong tag of an answer that follows from the user's position and `content`."""
    return f'"{position}-{_digest(user_id, database)}-{_digest(*content)}"'


def _digest(*content: str | bytes) -> str:
    parts = (part.encode() if isinstance(part, str) else part for part in content)
    return sha256(b"\n".join(parts)).hexdigest()[:32]


async def _allowed_versions(if_match: IfMatch = None, if_none_match: UnlessAny = None) -> Versions:
    """Return the versions that a write may meet, None for any."""
    return _allowed(if_match, if_none_match, _VERSION)


async def _given(if_match: IfMatch = None, if_none_match: UnlessAny = None) -> Conditions:
    return if_match, if_none_match


Allowed = Annotated[Versions, Depends(_allowed_versions)]
Given = Annotated[Conditions, Depends(_given)]


def allowed_positions(given: Conditions, user_id: str, database: str) -> Positions:
    """Return the positions, told by the tags of lists, that a bulk call may meet; None for any."""
    return _allowed(*given, _POSITION % _digest(user_id, database))


def _allowed(if_match: str | None, if_none_match: str | None, tag: str) -> tuple[int, ...] | None:
    """Return what the conditions allow, None for any; a weak tag never matches."""
    allowed = None
    if if_match is not None and if_match != "*":
        known = [re.fullmatch(tag, text) for weak, text in _tags("If-Match", if_match) if not weak]
        allowed = tuple(int(match[match.lastindex or 0]) for match in known if match) or _NEVER
    if if_none_match is None:
        return allowed
    if if_none_match != "*":
        raise invalid("header", "If-None-Match", "must be * on a change")
    return _NEVER


def not_modified(if_none_match: str, etag: str) -> bool:
    """Return whether the client already has the answer; the comparison is weak."""
    if if_none_match == "*":
        return True
    return any(f'"{tag}"' == etag for _, tag in _tags("If-None-Match", if_none_match))


def _tags(header: str, value: str) -> list[tuple[str, str]]:
    if not _LIST.fullmatch(value):
        raise invalid("header", header, 'must be * or a list of entity tags like "7"')
    return _TAG.findall(value)  # not split at commas: a tag may hold one
