"""What Hypothesis draws for the tests of the API against its model: tasks, changes, queries."""

import os
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.support import model

# The same examples in every run: what fails in CI fails at home, where there is time to shrink it.
REPRODUCIBLE: Final = settings(
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, *([] if "CI" in os.environ else [Phase.shrink])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Letters that fold, sort or match otherwise than their bytes suggest, and what SQL could misread.
LETTERS = "aAbzZ0 9éÉßẞſİıΣσςﬀǅÅ日🛒𝒳%_\\'\"*?[]-:;\x7f\u0301\u200d\uffff"  # noqa: RUF001
WORDS = ("a", "A", "É", "é", "straße", "STRASSE", "100%", "a_b", "a\\b", "ΣΑΣ", "σας", "İ", "")
DAYS = ("0001-01-01", "2020-02-29", "2020-03-01", "2035-01-01", "9999-12-31")
TIMES = ("00:00:00.000000", "12:00:00.000001", "23:59:59.999999")
TAGS = ("home", "Home", "hom", "to do", "é", "É", "%", "_", "\\", '"', "'", "null", "1", "🛒")
ORDERS = (-1.5, 0.0, 0.1, 1.0, 2.0, 1e300, 5e-324)
BOOLEANS = ("true", "false")

texts = st.sampled_from(WORDS) | st.text(LETTERS, max_size=4)
titles = texts.filter(lambda text: text.strip(" \x7f\u200d"))  # something that can be seen
instants = st.builds("{}T{}Z".format, st.sampled_from(DAYS), st.sampled_from(TIMES))
wall_clock_times = st.builds(
    "{}T{}".format, st.sampled_from(DAYS), st.sampled_from([time[:8] for time in TIMES])
)
RULES = ("FREQ=DAILY;INTERVAL=999", "FREQ=YEARLY", "FREQ=MONTHLY;BYMONTHDAY=-1;COUNT=2")
dues = st.sampled_from(DAYS) | instants | wall_clock_times
_optional = {
    "description": st.none() | texts,
    "completed": st.booleans(),
    "priority": st.sampled_from(model.PRIORITIES),
    "due_date": st.none() | dues,
    "remind_at": st.none() | instants | wall_clock_times,
    "recurrence": st.none() | st.sampled_from(RULES),
    "repeat_from": st.sampled_from(["due", "completed"]),
    "tags": st.lists(st.sampled_from(TAGS), max_size=4, unique=True),
    "order": st.none() | st.sampled_from(ORDERS),
    # What a client sends back with the rest of a record.
    "id": st.just(7),
    "url": st.just("ignored"),
    "updated_at": st.none(),
}


def _repeats_only_with_a_due_date(body: dict[str, Any]) -> bool:
    return body.get("recurrence") is None or body.get("due_date") is not None


new_tasks = st.fixed_dictionaries({"title": titles}, optional=_optional).filter(
    _repeats_only_with_a_due_date
)
changes = st.fixed_dictionaries({}, optional={"title": titles, **_optional})

Query = list[tuple[str, str | int | float | bool | None]]  # as httpx2 takes it

_SUFFIXES = ("", "_gte", "_lte", "_ne", "_like")
_REPEATABLE = ("id", "priority")
_REFUSED = {("completed", "_like"), ("order", "_like"), ("order", "")}
_REFUSED |= {("tags", "_gte"), ("tags", "_lte"), *((field, "") for field in _REPEATABLE)}
_FIELD_FILTERS = [
    (field, suffix)
    for field in model.FIELDS
    for suffix in _SUFFIXES
    if (field, suffix) not in _REFUSED
]
_SORTABLE = [*(field for field in model.FIELDS if field != "tags"), *model.ALIASES]


def _field(name: str) -> str:
    return model.ALIASES.get(name, name)


def _shown(task: model.Task, field: str) -> str:
    return " ".join(task[field]) if field == "tags" else str(task[field])


def _pieces(field: str, tasks: list[model.Task]) -> st.SearchStrategy[str]:
    """Return pieces of what a field of the tasks shows, in upper and lower case."""
    shown = st.sampled_from([*(_shown(task, field) for task in tasks), "%"])
    piece = st.builds(
        lambda text, start, length: text[start % len(text) :][:length] if text else "",
        shown,
        st.integers(0, 26),
        st.integers(0, 4),
    )
    return st.one_of(piece, piece.map(str.upper), piece.map(str.lower))


def _values(field: str, suffix: str, tasks: list[model.Task]) -> st.SearchStrategy[str]:
    """Return values for the parameter `field` with `suffix`, many of them those of some task."""
    if suffix == "_like":
        return _pieces(field, tasks)
    if field in model.TEXTS:
        return texts | st.sampled_from([str(task[field]) for task in tasks] or ["a"])
    null = [""] if suffix in ("", "_ne") else []
    if field in model.TIMESTAMPS:
        some = [task[field] for task in tasks if task[field]]
        return st.sampled_from([*some, "2020-01-01T00:00:00.000000Z", *null])
    return {
        "id": st.sampled_from([str(task["id"]) for task in tasks] or ["1"]),
        "user_id": st.sampled_from([*(task["user_id"] for task in tasks), "", "zz"]),
        "completed": st.sampled_from(BOOLEANS),
        "priority": st.sampled_from(model.PRIORITIES),
        "due_date": dues | st.sampled_from(null) if null else dues,
        "remind_at": dues if "te" in suffix else st.sampled_from(["2020-02-29T12:00:00", *null]),
        "recurrence": st.sampled_from([*RULES, *null]),
        "repeat_from": st.sampled_from(["due", "completed"]),
        "tags": st.sampled_from(TAGS),
        "order": st.sampled_from([str(order) for order in ORDERS]),
    }[field]


@st.composite
def filters(draw: st.DrawFn, tasks: list[model.Task]) -> Query:
    """Draw up to two filters, in either dialect, that make sense for these tasks."""
    drawn: dict[str, list[str]] = {}
    for kind in draw(st.lists(st.integers(0, 9), max_size=2)):
        match kind:
            case 0:
                drawn["status"] = [draw(st.sampled_from(["all", "pending", "completed"]))]
            case 1 if not {"q", "search"} & set(drawn):
                drawn[draw(st.sampled_from(["q", "search"]))] = [
                    draw(_pieces("title", tasks) | texts)
                ]
            case 2:
                drawn["overdue"] = [draw(st.sampled_from(BOOLEANS))]
            case 3:
                drawn[draw(st.sampled_from(["due_before", "due_after"]))] = [draw(dues)]
            case 4:
                name = draw(st.sampled_from(["tag", *_REPEATABLE]))
                field = "tags" if name == "tag" else name
                some = st.lists(_values(field, "", tasks), min_size=1, max_size=3)
                drawn[name] = draw(some)
            case _:
                field, suffix = draw(st.sampled_from(_FIELD_FILTERS))
                drawn[field + suffix] = [draw(_values(field, suffix, tasks))]
    return [(name, value) for name, several in drawn.items() for value in several]


def bulk_filters(tasks: list[model.Task]) -> st.SearchStrategy[Query]:
    """Draw what `filters` draws, without the empty values that a bulk call refuses."""

    def means_something(name: str, value: object) -> bool:
        return value != "" or name.removesuffix("_ne") in (
            *model.DUES,
            "recurrence",
            "completed_at",
        )

    return filters(tasks).map(lambda query: [each for each in query if means_something(*each)])


@st.composite
def orders(draw: st.DrawFn) -> Query:
    """Draw an order, in any of the dialects, or none."""
    fields = draw(st.lists(st.sampled_from(_SORTABLE), max_size=3, unique_by=_field))
    directions = ["asc", "desc", "ASC", "DESC"]
    if not fields:
        name = draw(st.sampled_from(["", "_order", "order"]))
        return [(name, draw(st.sampled_from(directions)))] if name else []
    if draw(st.booleans()):
        signs = [draw(st.sampled_from(["", "-"])) for _ in fields]
        return [("sort", ",".join(map("".join, zip(signs, fields, strict=True))))]
    some = draw(st.lists(st.sampled_from(directions), max_size=len(fields)))
    name, order = draw(st.sampled_from([("_sort", "_order"), ("sort_by", "order")]))
    return [(name, ",".join(fields)), *([(order, ",".join(some))] if some else [])]


@st.composite
def pages(draw: st.DrawFn) -> Query:
    """Draw a page, in any of the dialects, or none."""
    size, skipped = draw(st.integers(1, 6)), draw(st.integers(0, 7))
    page: dict[str, int] = draw(
        st.sampled_from(
            [
                {},
                {"limit": size},
                {"offset": skipped},
                {"limit": size, "offset": skipped},
                {"_start": skipped, "_end": skipped + size},
                {"_end": size},
                {"_start": skipped, "_limit": size},
                {"_page": skipped + 1, "_limit": size},
                {"_page": 1},
            ]
        )
    )
    return [(name, str(value)) for name, value in page.items()]
