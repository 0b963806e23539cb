"""Conditional requests: `ETag`, `If-Match`, `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1)."""

import re
from hashlib import sha256

from errors import InvalidInput, field_error
from queries import Versions

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|$))+")
_NEVER = (0,)  # versions count from 1


def task_etag(task_id: int, version: int) -> str:
    """Return the strong tag of one version of a task."""
    return f'"{task_id}-{version}"'


def body_etag(body: bytes, total: str = "") -> str:
    """Return the strong tag of an answer by what is in it."""
    return f'"{sha256(body + total.encode()).hexdigest()[:32]}"'


def allowed_versions(if_match: str | None, task_id: int) -> Versions:
    """Return the versions that `If-Match` allows the task to have, or None where it allows any.

    The comparison is strong: a weak tag never matches. Raises `InvalidInput` when it is no list of
    tags.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    matches = [
        re.fullmatch(rf"{task_id}-([1-9][0-9]{{0,8}})", tag)
        for weak, tag in _tags("If-Match", if_match)
        if not weak
    ]
    return tuple(int(match[1]) for match in matches if match) or _NEVER


def not_modified(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client already has the answer; the comparison is weak."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(f'"{tag}"' == etag for _, tag in _tags("If-None-Match", if_none_match))


def _tags(header: str, value: str) -> list[tuple[str, str]]:
    if not _LIST.fullmatch(value):
        raise InvalidInput(
            [field_error("header", header, 'must be * or a list of entity tags like "7-1"')]
        )
    return _TAG.findall(value)  # not split at commas: a tag may hold one
