"""What a value may be: the type of every field of a task, each rule stated once.

The same types serve bodies, paths, query strings and settings.
"""

import re
from contextlib import suppress
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

import models
import recurrence
from engines.spelling import timestamp

MAX_ID: Final = 2**53 - 1  # the largest integer that JavaScript holds exactly
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
WORDS: Final = "stats|changes"  # of a path, and so of no task
# Words of an address. `/api/v1/tasks` must not be the list of a user "v1" whom everybody shares.
NO_USER: Final = "tasks|auth|users|v[0-9]+"
# Clients take `.` and `..` out of a path and would ask for somebody else's tasks. U+FFFD is what a
# path that is not UTF-8 decodes to: two such users would be one.
_NEITHER = rf"(?!(?:{NO_USER}|\.{{1,2}})$)"
_USER_ID = re.compile(_NEITHER + r"[^/\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]{1,128}")
# Blanks, controls, and what Unicode calls default ignorable: nobody sees them. The document says
# the common ones.
_INVISIBLE = r"\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f"
_VISIBLE = re.compile(
    rf"[^{_INVISIBLE}\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufeff\uffa0"
    r"\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MINUTE: Final = "([01][0-9]|2[0-3]):[0-5][0-9]"  # of a day
_CLOCK: Final = f"T{_MINUTE}(:[0-5][0-9])?"  # what `<input type="datetime-local">` gives
_CLOCK_TIME = re.compile(DAY.pattern + _CLOCK)
# RFC 3339 section 5.6.
_INSTANT = re.compile(rf"{DAY.pattern}[Tt ]{_MINUTE}:[0-9]{{2}}(\.[0-9]+)?([Zz]|[+-]{_MINUTE})")


def broken(rule: str) -> PydanticCustomError:
    """Return the error that says which rule a value breaks: "must be …"."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def characters(most: int, least: int = 0, *, trimmed: bool = False) -> tuple[object, object]:
    """Say of a string how many characters it has; NUL is refused, since PostgreSQL lacks it."""

    def check(value: str) -> str:
        value = value.strip() if trimmed else value
        if not least <= len(value) <= most:
            bounds = f"{least} to {most}" if least else f"at most {most}"
            raise broken(f"must be {bounds} characters")
        if _UNSTORABLE.search(value):
            raise broken("must not hold a NUL character or a lone surrogate")
        if trimmed and not _VISIBLE.search(value):
            raise broken("must hold a character that can be seen")
        return value

    bounds = {"maxLength": most} | ({"minLength": least} if least else {})
    seen = rf"[^{_INVISIBLE}][^\x00]*" if trimmed else ""
    schema = {"type": "string", **bounds, "pattern": rf"^[^\x00]*{seen}$"}
    return AfterValidator(check), WithJsonSchema(schema)


def _user_id(value: str) -> str:
    if not _USER_ID.fullmatch(value):
        raise broken(
            "must be 1 to 128 characters without / and controls, and not a word of an address: "
            "tasks, auth, users, v1, . or .."
        )
    return value


def _time(value: str) -> str | None:
    """Return an instant in UTC, or a wall-clock time to the second; None of an empty text."""
    if not value:
        return None
    with suppress(ValueError, OverflowError):
        if _CLOCK_TIME.fullmatch(value):
            return datetime.fromisoformat(value).isoformat()
        if _INSTANT.fullmatch(value):
            return timestamp(datetime.fromisoformat(value.upper()))
    raise broken("must be a time (2026-11-21T10:00), or with a UTC offset (2026-11-21T10:00:00Z)")


def _due_date(value: str) -> str | None:
    try:
        return date.fromisoformat(value).isoformat() if DAY.fullmatch(value) else _time(value)
    except ValueError:
        raise broken(
            "must be a day (2026-11-21), a time (2026-11-21T10:00), "
            "or one with a UTC offset (2026-11-21T10:00:00Z)"
        ) from None


def _distinct(tags: list[str]) -> list[str]:
    if len(set(tags)) < len(tags):
        raise broken("must not repeat a tag")
    return tags


def _schema(most: int, pattern: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most, "pattern": pattern}


_A_USER_ID: Final = _schema(128, rf"^{_NEITHER}[^/\x00-\x1f\x7f-\x9f\ufffd]+$")
UserId = Annotated[str, AfterValidator(_user_id), WithJsonSchema(_A_USER_ID)]


def _plain_decimal(value: Any) -> Any:
    if not re.fullmatch("0|[1-9][0-9]{0,15}", str(value)):
        raise broken("must be a whole number in plain digits")
    return value


PLAIN_DECIMAL = BeforeValidator(_plain_decimal)
TaskId = Annotated[int, Field(ge=1, le=MAX_ID), PLAIN_DECIMAL]
_NO_UID: Final = rf"(?!(?:[0-9]+|{WORDS})$)"


def _uid(value: str) -> str:
    if not re.fullmatch(rf"{_NO_UID}[A-Za-z0-9_-]{{1,64}}", value):
        raise broken(
            "must be 1 to 64 of A-Z a-z 0-9 _ -, not only digits, and not "
            + " or ".join(WORDS.split("|"))
        )
    return value


def _task_ref(value: str) -> int | str:
    if not re.fullmatch("[0-9]+", value):
        return _uid(value)
    if not re.fullmatch("[1-9][0-9]{0,15}", value) or int(value) > MAX_ID:
        raise broken(f"must be 1 to {MAX_ID} in plain digits, or a uid")
    return int(value)


_A_UID: Final = _schema(64, rf"^{_NO_UID}[A-Za-z0-9_\-]+$")
Uid = Annotated[str, AfterValidator(_uid), WithJsonSchema(_A_UID)]
TaskRef = Annotated[  # the `id` or the `uid` of a task
    str,
    AfterValidator(_task_ref),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_ID}, _A_UID]}),
]
Title = Annotated[str, *characters(200, 1, trimmed=True)]
Description = Annotated[str, *characters(10_000)]
Tag = Annotated[str, *characters(50, 1, trimmed=True)]
Tags = Annotated[
    list[Tag],
    Field(max_length=20, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
_CLOCK_TIMES: Final = (  # only of days that there are, as far as a pattern can tell
    r"^([1-9][0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|"
    r"(0[13578]|1[02])-31)|[1-9][0-9](0[48]|[2468][048]|[13579][26])-02-29)"
    rf"{_CLOCK}$"
)
_TIMES: Final = (
    {"type": "string", "pattern": _CLOCK_TIMES},
    {"type": "string", "format": "date-time"},
)
_DATES: Final = ({"type": "string", "format": "date"}, *_TIMES)
_EMPTY: Final = {"type": "string", "maxLength": 0}
DueDate = Annotated[str, AfterValidator(_due_date), WithJsonSchema({"anyOf": [*_DATES, _EMPTY]})]
DUE_BOUND: Final = WithJsonSchema({"anyOf": [*_DATES]})
RemindAt = Annotated[str, AfterValidator(_time), WithJsonSchema({"anyOf": [*_TIMES, _EMPTY]})]
# One type for generated clients: those that try several would read a time as its day.
SHOWN_DUE_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6}Z)?)?$"
Recurrence = Annotated[
    str,
    AfterValidator(lambda rule: rule if rule and recurrence.parse(rule) else None),
    WithJsonSchema({"type": "string", "format": "rrule"}),
]
RepeatFrom = Literal["due", "completed"]
Priority = Annotated[
    models.Priority, BeforeValidator(lambda name: name.lower() if isinstance(name, str) else name)
]
# Adding 0.0 turns the -0.0 that only one of the databases would keep into 0.0.
Order = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda order: order + 0.0)]


def _idempotency_key(value: str) -> str:
    if not re.fullmatch("[!-~]{1,255}", value):
        raise broken("must be 1 to 255 visible ASCII characters")
    return value


IdempotencyKey = Annotated[str, AfterValidator(_idempotency_key)]
