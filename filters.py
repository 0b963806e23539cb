"""How the text of a filter is read, and which condition it stands for.

json-server gives each field five filters; `FIELDS` says how the value of each is read.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, WithJsonSchema, create_model

import fields
from fields import DAY, DUE_BOUND, Description, DueDate, Order, Priority, RemindAt, TaskId, broken
from models import PRIORITIES


class Condition(NamedTuple):
    """`column operator value`; the operators are `eq ne lt gt gte lte like in`.

    The column may also be `text` (title or description) or `overdue`. With `in`, and for `tags`
    with `eq` (has all of them) and `ne`, the value is a list. A parameter is declared with the
    condition that it stands for, without a value.
    """

    column: str
    operator: str
    value: Any = None


def _due_from(value: str | None) -> str:
    """Return what sorts before nothing that is due then, be it an instant or a wall-clock time."""
    if value is None:
        raise broken("must be a day or a time")
    return value.removesuffix(".000000Z")


def _due_until(value: str | None) -> str:
    """Return what sorts after all that is due then, or on all of that day."""
    bound = _due_from(value)
    if DAY.fullmatch(bound):
        return bound + "~"
    return bound if bound.endswith("Z") else bound + ".000000Z"


def _at(day_from: str) -> AfterValidator:
    """Read an instant; a day stands for its time `day_from`, or for none if that is empty."""

    def read(value: str | None) -> datetime | None:
        if day_from and value is None:
            raise broken("must not be empty")
        if value and DAY.fullmatch(value):
            if not day_from:
                raise broken("must be a timestamp with a UTC offset")
            value += day_from
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if value else None

    return AfterValidator(read)


def ranks(names: list[str]) -> list[int]:
    """Return the places of priorities."""
    return [PRIORITIES.index(name) for name in names]


def _number(value: Any) -> Any:
    if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", str(value)):
        raise broken("must be a number")
    return value


AsList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
Flag = Annotated[
    Literal["true", "false"],
    BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value),
    AfterValidator(lambda value: value == "true"),
    WithJsonSchema({"type": "boolean"}),
]
Folded = Annotated[Description, AfterValidator(str.casefold)]
_Rule = Annotated[Description, AfterValidator(lambda rule: rule or None)]
_OneTag = Annotated[fields.Tag, AfterValidator(lambda tag: [tag])]
_Number = Annotated[Order, BeforeValidator(_number)]
DueFrom = Annotated[DueDate, AfterValidator(_due_from), DUE_BOUND]
DueUntil = Annotated[DueDate, AfterValidator(_due_until), DUE_BOUND]
_PriorityLike = Annotated[
    Description,
    AfterValidator(lambda part: ranks([name for name in PRIORITIES if part.lower() in name])),
]
_Moment = (
    Annotated[DueDate, _at("")],
    Annotated[DueDate, _at("T00:00:00.000000Z")],
    Annotated[DueDate, _at("T23:59:59.999999Z")],
    Description,
)

# How the text of `FIELD` and `FIELD_ne`, `FIELD_gte`, `FIELD_lte` and `FIELD_like` is read.
FIELDS: Final[dict[str, tuple[Any, Any, Any, Any]]] = {
    "id": (TaskId, TaskId, TaskId, Description),
    "uid": (Description, Description, Description, Description),
    "user_id": (Description, Description, Description, Description),
    "title": (Description, Folded, Folded, Folded),
    "description": (Description, Folded, Folded, Folded),
    "completed": (Flag, Flag, Flag, None),
    "completed_at": _Moment,
    "priority": (Priority, Priority, Priority, _PriorityLike),
    "due_date": (DueDate, DueFrom, DueUntil, Description),
    "remind_at": (RemindAt, DueFrom, DueUntil, Description),
    "recurrence": (_Rule, _Rule, _Rule, Description),
    "repeat_from": (fields.RepeatFrom, fields.RepeatFrom, fields.RepeatFrom, Description),
    "tags": (_OneTag, None, None, Description),
    "order": (_Number, _Number, _Number, None),
    "created_at": _Moment,
    "updated_at": _Moment,
}
_MEANING_MORE: Final = ("id", "priority", "order")  # declared below
SORTABLE: Final = tuple(field for field in FIELDS if field != "tags")


def _field_filters() -> dict[str, Any]:
    """Return the parameters that json-server makes of every field: `title_like`, `order_gte` …"""
    parameters: dict[str, Any] = {}
    for field, (exact, least, most, like) in FIELDS.items():
        kinds = {"eq": exact, "ne": exact, "gte": least, "lte": most, "like": like}
        for operator, kind in kinds.items():
            name = field if operator == "eq" else f"{field}_{operator}"
            column = field + "_folded" if kind is Folded else field
            condition = Condition(column, "in" if kind is _PriorityLike else operator)
            if kind is not None and name not in _MEANING_MORE:
                parameters[name] = (Annotated[kind, condition], None)
    return parameters


ByField: Any = create_model("ByField", __config__=ConfigDict(extra="forbid"), **_field_filters())
