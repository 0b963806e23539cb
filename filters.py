"""The query string of a list: which tasks, in which order, which page (contract section 3).

It speaks two dialects at once, this service's own (`status`, `sort=-priority`, `limit`) and
json-server's (`completed=true`, `_sort` with `_order`, `_start` with `_end`, `FIELD_gte`). Every
parameter that it does not know is refused: a misspelt filter on a bulk delete must not match all.
"""

import re
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from errors import InvalidInput, field_error, rule
from models import PRIORITIES, Priority
from schemas import MAX_ID, Description, DueDate, Order, Tag, TaskId

MAX_PAGE: Final = 1000

_TEXT: Final[TypeAdapter[str]] = TypeAdapter(Description)
_MOMENT: Final[TypeAdapter[str | None]] = TypeAdapter(DueDate)
# How a value of each field is read. `FIELD_like` is not here: it reads any text.
FIELDS: Final[dict[str, TypeAdapter[Any]]] = {
    "id": TypeAdapter(TaskId),
    "user_id": _TEXT,
    "title": _TEXT,
    "description": _TEXT,
    "completed": TypeAdapter(Literal["true", "false"]),
    "completed_at": _MOMENT,
    "priority": TypeAdapter(Priority),
    "due_date": _MOMENT,
    "tags": TypeAdapter(Tag),
    "order": TypeAdapter(Order),
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
}
_TIMESTAMPS: Final = ("completed_at", "created_at", "updated_at")
_SORT_ALIASES: Final = {"created": "created_at", "updated": "updated_at"}
PAGING: Final = ("limit", "offset", "_limit", "_start", "_end", "_page")
SORTABLE: Final = tuple(field for field in FIELDS if field != "tags")
OPERATORS: Final = ("gte", "lte", "ne", "like")  # as in `FIELD_gte`; a bare `FIELD` means equals
# `order` alone is the direction of a sort, so where there is no sort it is unknown too.
IMPOSSIBLE: Final = ("tags_gte", "tags_lte", "completed_like", "order_like", "order")


class Condition(NamedTuple):
    """`field operator value`; the operators are `eq ne lt gt gte lte like in`.

    The field is a column, or `text` (title or description), or `overdue`. With `in`, and for
    `tags` with `eq` (has all of them) and `ne`, the value is a list.
    """

    field: str
    operator: str
    value: Any


class TaskFilter(NamedTuple):
    """Which tasks, in which order, and which page of them."""

    conditions: tuple[Condition, ...] = ()
    sort: tuple[str, ...] = ()  # field names, descending with a leading "-"
    limit: int = MAX_PAGE
    offset: int = 0

    @classmethod
    def parse(cls, query: str, *, paged: bool = True) -> "TaskFilter":
        """Return the filter that a query string asks for; raise `InvalidInput` naming what is
        wrong.

        With `paged=False`, for the calls that have no pages, order and page are refused too.
        """
        return _Reader(query).read(paged=paged) if query else EVERYTHING


EVERYTHING: Final = TaskFilter()


class _Reader:
    """Takes the parameters of one query string one by one, and keeps what is wrong with them."""

    def __init__(self, query: str) -> None:
        self.given: dict[str, list[str]] = {}
        self.conditions: list[Condition] = []
        self.errors: list[dict[str, str]] = []
        for name, value in parse_qsl(query, keep_blank_values=True):
            self.given.setdefault(name, []).append(value)

    def read(self, *, paged: bool) -> TaskFilter:
        limit, offset = self._page() if paged else (MAX_PAGE, 0)
        sort = self._sort() if paged else ()
        self._named_filters()
        for name in list(self.given):
            self._field_filter(name)
        if self.errors:
            raise InvalidInput(self.errors)
        return TaskFilter(tuple(self.conditions), sort, limit, offset)

    # Taking parameters

    def _refuse(self, name: str, message: str) -> None:
        self.errors.append(field_error("query", name, message))

    def _single(self, *names: str) -> tuple[str, str]:
        """Take the parameter that goes by one of `names`; return its name and value, if any."""
        found = [(name, value) for name in names for value in self.given.pop(name, ())]
        if len(found) > 1:
            self._refuse(found[1][0], "must be given only once")
        return found[0] if found else ("", "")

    def _whole(self, *names: str, least: int = 0, most: int = MAX_ID) -> int | None:
        name, value = self._single(*names)
        if not name:
            return None
        if re.fullmatch("[0-9]{1,16}", value) and least <= int(value) <= most:
            return int(value)
        self._refuse(name, f"must be a whole number from {least} to {most}")
        return None

    def _flag(self, name: str) -> bool | None:
        given, value = self._single(name)
        if given and value not in ("true", "false"):
            self._refuse(name, "must be true or false")
        return {"true": True, "false": False}.get(value)

    def _valid(self, reader: TypeAdapter[Any], name: str, value: str) -> Any:
        try:
            return reader.validate_strings(value)
        except ValidationError as invalid:
            self._refuse(name, rule(invalid.errors(include_input=False)[0]))
            return None

    def _where(self, field: str, operator: str, value: Any) -> None:
        self.conditions.append(Condition(field, operator, value))

    # The page and the order

    def _page(self) -> tuple[int, int]:
        limit = self._whole("limit", "_limit", least=1, most=MAX_PAGE)
        start = self._whole("offset", "_start")
        end = self._whole("_end", least=1)
        page = self._whole("_page", least=1, most=MAX_ID // MAX_PAGE)
        offset = start or 0
        if end is not None:
            if limit is not None or not offset < end <= offset + MAX_PAGE:
                self._refuse(
                    "_end", f"must be 1 to {MAX_PAGE} more than _start, and without a limit"
                )
            limit = end - offset
        if page is not None:
            if start is not None or end is not None:
                self._refuse("_page", "must not come with an offset")
            offset = (page - 1) * (limit or MAX_PAGE)
        return limit or MAX_PAGE, offset

    def _sort(self) -> tuple[str, ...]:
        name, keys = self._single("sort", "_sort", "sort_by")
        direction, orders = self._single("_order", "order")
        descending = [order.strip().lower() == "desc" for order in orders.split(",")]
        if direction and not {"asc", "desc"}.issuperset(
            order.strip().lower() for order in orders.split(",")
        ):
            self._refuse(direction, "must be asc or desc, or a comma list of them")
        sort: dict[str, str] = {}  # a field that comes again orders nothing any more
        # A direction without a key turns the default order.
        for place, key in enumerate((keys or ("created_at" if direction else "")).split(",")):
            field = key.strip().removeprefix("-")
            field = _SORT_ALIASES.get(field, field)
            if field in SORTABLE:
                turned = place < len(descending) and descending[place]
                minus = "-" * (key.strip().startswith("-") != turned)
                sort.setdefault(field, minus + field)
            elif keys:
                self._refuse(name, f"must be a comma list of {', '.join(SORTABLE)}")
                break
        return tuple(sort.values())

    # The filters

    def _named_filters(self) -> None:
        name, status = self._single("status")
        if name and status not in ("all", "pending", "completed"):
            self._refuse(name, "must be all, pending or completed")
        elif status in ("pending", "completed"):
            self._where("completed", "eq", status == "completed")
        name, words = self._single("q", "search")
        if words and (words := self._valid(_TEXT, name, words)):
            self._where("text", "like", words.casefold())
        if (overdue := self._flag("overdue")) is not None:
            self._where("overdue", "eq", overdue)
        for name, operator in (("due_before", "lt"), ("due_after", "gt")):
            given, value = self._single(name)
            if given and (bound := self._valid(_MOMENT, given, value)):
                self._where("due_date", operator, _end_of(bound) if operator == "gt" else bound)
            elif given and not value:
                self._refuse(given, "must be a day or a timestamp")
        for name, field, operator in (
            ("tag", "tags", "eq"),
            ("id", "id", "in"),
            ("priority", "priority", "in"),
        ):
            if values := self.given.pop(name, ()):
                read = [self._valid(FIELDS[field], name, value) for value in values]
                self._where(field, operator, read)

    def _field_filter(self, name: str) -> None:
        """Take `FIELD`, or `FIELD_gte`, `_lte`, `_ne`, `_like`."""
        field, _, operator = name.rpartition("_")
        if field not in FIELDS or operator not in OPERATORS:
            field, operator = name, "eq"
        if field not in FIELDS or name in IMPOSSIBLE:
            self._refuse(name, "is not a parameter of this call")
            return
        _, text = self._single(name)
        if operator == "like":
            self._contains(name, field, text)
            return
        refused = len(self.errors)
        value = self._valid(FIELDS[field], name, text)
        if len(self.errors) > refused:
            return
        if value is None and operator in ("gte", "lte"):
            self._refuse(name, "must not be empty")
        elif field in _TIMESTAMPS and value is not None:
            self._compare_timestamp(name, field, operator, value)
        elif field in ("title", "description") and operator in ("gte", "lte"):
            self._where(f"{field}_folded", operator, str(value).casefold())
        elif field == "completed":
            self._where(field, operator, value == "true")
        elif field == "tags":
            self._where(field, operator, [value])
        else:
            self._where(field, operator, _end_of(value) if operator == "lte" else value)

    def _contains(self, name: str, field: str, text: str) -> None:
        part = self._valid(_TEXT, name, text) or ""
        if field == "priority":
            self._where(field, "in", tuple(rank for rank in PRIORITIES if part in rank))
        elif field in ("title", "description"):
            self._where(f"{field}_folded", "like", part.casefold())
        else:
            self._where(field, "like", part)

    def _compare_timestamp(self, name: str, field: str, operator: str, value: str) -> None:
        if len(value) == len("2026-11-21"):
            if operator not in ("gte", "lte"):
                self._refuse(name, "must be a timestamp with a UTC offset")
            value += "T00:00:00.000000Z" if operator == "gte" else "T23:59:59.999999Z"
        self._where(field, operator, datetime.fromisoformat(value))


def _end_of(bound: Any) -> Any:
    """Return what sorts after all of a day, where `bound` is a day of `due_date`."""
    return bound + "~" if isinstance(bound, str) and len(bound) == len("2026-11-21") else bound
