"""What lists answer, in plain Python over tasks as the API shows them: no SQL, no database.

The rules are those of contract section 3, written the long way and from the other side than the
service: from what a client sees.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cmp_to_key
from typing import Any

Task = dict[str, Any]
Parameters = Sequence[tuple[str, Any]]

PRIORITIES = ("none", "low", "medium", "high", "urgent")
TEXTS = ("title", "description")
DUES = ("due_date", "remind_at")
TIMESTAMPS = ("completed_at", "created_at", "updated_at")
FIELDS = (
    "id",
    "user_id",
    *TEXTS,
    "completed",
    "priority",
    "due_date",
    "remind_at",
    "recurrence",
    "repeat_from",
    "tags",
    "order",
    *TIMESTAMPS,
)
ALIASES = {"created": "created_at", "updated": "updated_at"}


def is_day(value: str) -> bool:
    """Return whether a due date is a day rather than an instant."""
    return len(value) == len("2026-11-21")


def is_overdue(task: Task) -> bool:
    """Return whether the task is pending and due before now; a day is over at its end in UTC."""
    due, now = task["due_date"], datetime.now(UTC)
    if due is None or task["completed"]:
        return False
    if is_day(due):
        return bool(due < now.date().isoformat())
    return datetime.fromisoformat(due).replace(tzinfo=UTC) < now


def moment(due: str) -> str:
    """Return what compares due dates: a day before its times, a wall-clock time as one in UTC."""
    is_wall_clock = len(due) == len("2026-11-21T10:00:00")
    return due + ".000000Z" if is_wall_clock else due


def select(tasks: Iterable[Task], parameters: Parameters) -> list[Task]:
    """Return the tasks that match the filters among the parameters, in no order."""
    filters = [pair for pair in parameters if not _is_order_or_page(pair[0])]
    anyof: dict[str, set[str]] = {}
    for name, value in filters:
        if name in ("id", "priority"):
            anyof.setdefault(name, set()).add(value)
    return [
        task
        for task in tasks
        if all(str(task[name]) in values for name, values in anyof.items())
        and all(_matches(task, *pair) for pair in filters if pair[0] not in anyof)
    ]


def arrange(tasks: Iterable[Task], parameters: Parameters) -> list[Task]:
    """Return the tasks in the order that the parameters ask for."""
    given = dict(parameters)
    keys = next((given[name] for name in ("sort", "_sort", "sort_by") if given.get(name)), "")
    orders = next((given[name] for name in ("_order", "order") if name in given), "")
    directions = [order.lower() == "desc" for order in orders.split(",")] if orders else []
    if not keys:
        wanted = [("id", directions[0] if directions else True)]
    else:
        directions += [False] * len(keys.split(","))
        wanted = [
            (ALIASES.get(key.lstrip("-"), key.lstrip("-")), key.startswith("-") or descending)
            for key, descending in zip(keys.split(","), directions, strict=False)
        ]
    wanted.append(("id", wanted[-1][1]))

    def compare(one: Task, other: Task) -> int:
        for field, descending in wanted:
            a, b = _rank(field, one[field]), _rank(field, other[field])
            if a != b:
                if a is None or b is None:
                    return 1 if a is None else -1
                return -1 if (a < b) != descending else 1
        return 0

    return sorted(tasks, key=cmp_to_key(compare))


def page(tasks: list[Task], parameters: Parameters) -> tuple[list[Task], bool, bool]:
    """Return the page of tasks that the parameters ask for; whether there is a next and a prev."""
    given = {name: int(value) for name, value in parameters if _is_order_or_page(name, order=False)}
    limit = given.get("limit", given.get("_limit", 1000))
    offset = given.get("offset", given.get("_start", 0))
    if "_end" in given:
        limit = given["_end"] - offset
    if "_page" in given:
        offset = (given["_page"] - 1) * limit
    return tasks[offset : offset + limit], offset + limit < len(tasks), offset > 0


def stats(tasks: Sequence[Task]) -> dict[str, int]:
    """Return the numbers of `/stats` for these tasks."""
    completed = sum(task["completed"] for task in tasks)
    return {
        "total": len(tasks),
        "completed": completed,
        "pending": len(tasks) - completed,
        "overdue": sum(map(is_overdue, tasks)),
    }


def _is_order_or_page(name: str, *, order: bool = True) -> bool:
    if name in ("sort", "_sort", "sort_by", "_order", "order"):
        return order
    return name in ("limit", "offset", "_limit", "_start", "_end", "_page")


def _rank(field: str, value: Any) -> Any:
    """Return what to compare instead of a value of that field."""
    if field == "priority":
        return PRIORITIES.index(value)
    return value.casefold() if field in TEXTS and value is not None else value


def _matches(task: Task, name: str, value: str) -> bool:
    due = task["due_date"]
    match name:
        case "status":
            return value == "all" or task["completed"] == (value == "completed")
        case "q" | "search":
            texts = (task["title"], task["description"] or "")
            return any(value.casefold() in text.casefold() for text in texts)
        case "tag" | "tags":
            return value.strip() in task["tags"]
        case "tags_ne":
            return value.strip() not in task["tags"]
        case "overdue":
            return is_overdue(task) == (value == "true")
        case "due_before":
            return due is not None and moment(due) < moment(value)
        case "due_after":
            return due is not None and (
                due[:10] > value if is_day(value) else moment(due) > moment(value)
            )
    if name in FIELDS:
        return _compare(task, name, "eq", value)
    field, _, operator = name.rpartition("_")
    return _compare(task, field, operator, value)


def _compare(task: Task, field: str, operator: str, text: str) -> bool:
    shown = task[field]
    if operator == "like":
        if field == "tags":
            return text == "" or any(text in tag for tag in shown)
        if shown is None:
            return False
        if field == "priority":  # which is read in any case
            return text.lower() in shown
        return text.casefold() in shown.casefold() if field in TEXTS else text in str(shown)
    if field in (*DUES, "recurrence", *TIMESTAMPS) and text == "":
        wanted: Any = None
    elif field == "completed":
        wanted = text == "true"
    else:
        wanted = {"id": int, "order": float}.get(field, str)(text)
    if operator in ("eq", "ne"):
        return bool(shown == wanted) == (operator == "eq")
    if shown is None:
        return False
    if field in DUES and operator == "lte" and is_day(wanted):
        shown = shown[:10]
    if field in DUES:
        shown, wanted = moment(shown), moment(wanted)
    one, other = _rank(field, shown), _rank(field, wanted)
    return bool(one >= other if operator == "gte" else one <= other)
