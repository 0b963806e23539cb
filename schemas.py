"""What comes in and goes out: bodies, query strings and answers. Rules of fields: `fields.py`.

Bodies are strict: a JSON boolean is a boolean and nothing else is. Query strings are models like
the bodies; their values arrive as text.
"""

from datetime import datetime
from functools import cached_property
from itertools import chain, repeat
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

import fields
import recurrence
from errors import MANY, ONE
from fields import MAX_ID, PLAIN_DECIMAL, TaskId, broken
from filters import SORTABLE, AsList, ByField, Condition, DueFrom, DueUntil, Flag, Folded, ranks

READ_ONLY: Final = frozenset(
    {"id", "etag", "url", "user_id", "completed_at", "created_at", "updated_at"}
)
MAX_CREATES: Final = 1000  # tasks made by one call
_MOST_FIELDS: Final = 100


def example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Body(BaseModel):
    """A request body: strict types, unknown fields refused, read-only fields ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)
    read_only: ClassVar = READ_ONLY

    @model_validator(mode="before")
    @classmethod
    def _drop_read_only(cls, body: Any) -> Any:
        if isinstance(body, dict) and len(body) > _MOST_FIELDS:  # to name them all takes long
            raise broken(f"must not have more than {_MOST_FIELDS} fields")
        if isinstance(body, dict) and not cls.read_only.isdisjoint(body):
            return {name: value for name, value in body.items() if name not in cls.read_only}
        return body


class TaskUpdate(Body):
    """The fields to change; one that is left out stays, `null` clears one that may be null."""

    model_config = example(priority="high")
    read_only: ClassVar = READ_ONLY | {"uid"}

    # The None of a field that may not be null only ever stands for "not sent".
    title: fields.Title = None  # type: ignore[assignment]
    description: fields.Description | None = None
    completed: bool = None  # type: ignore[assignment]
    priority: fields.Priority = None  # type: ignore[assignment]
    due_date: fields.DueDate | None = None
    remind_at: fields.RemindAt | None = None
    recurrence: fields.Recurrence | None = None
    repeat_from: fields.RepeatFrom = None  # type: ignore[assignment]
    tags: fields.Tags = None  # type: ignore[assignment]
    order: fields.Order | None = None
    deleted: bool = None  # type: ignore[assignment]


class TaskCreate(TaskUpdate):
    """A task to create; only the title is required."""

    model_config = example(title="Buy milk", due_date="2026-11-21", tags=["shopping"])
    read_only: ClassVar = READ_ONLY

    title: fields.Title
    completed: bool = False
    priority: fields.Priority = "none"
    repeat_from: fields.RepeatFrom = "due"
    tags: fields.Tags = []
    deleted: bool = False
    uid: fields.Uid | None = None

    @field_validator("recurrence")
    @classmethod
    def _fits(cls, rule: str | None, info: ValidationInfo) -> str | None:
        if rule is not None and "due_date" in info.data:  # else that is wrong itself
            recurrence.check(rule, info.data["due_date"])
        return rule


# One task, or an array of them that ends at the first that is wrong. The document says the array in
# words: with two kinds of answer, generated clients would ask of everybody which one it is.
NewTasks = Annotated[
    Annotated[TaskCreate, Tag(ONE)]
    | Annotated[
        list[TaskCreate],
        Field(min_length=1, max_length=MAX_CREATES, fail_fast=True),
        Tag(MANY),
        SkipJsonSchema(),
    ],
    Discriminator(lambda body: MANY if isinstance(body, list) else ONE),
]


class Completion(Body):
    """Whether the task shall be completed."""

    model_config = example(completed=True)

    completed: bool


class Task(BaseModel):
    """A task as the API shows it."""

    model_config = example(
        id=7,
        uid="01a1fa38-f8bb-7a6d-9c55-3f1c2d7a8e10",
        etag='"4503599627370496"',
        url="http://localhost:8000/api/tasks/7",
        user_id="demo",
        title="Buy milk",
        description="The one in glass",
        completed=True,
        completed_at="2026-11-21T07:15:00.654321Z",
        priority="high",
        due_date="2026-11-21",
        remind_at="2026-11-20T18:00:00",
        recurrence="FREQ=WEEKLY;BYDAY=MO,SA",
        repeat_from="due",
        tags=["shopping"],
        order=1.5,
        deleted=False,
        created_at="2026-11-20T18:30:00.123456Z",
        updated_at="2026-11-21T07:15:00.654321Z",
    )

    id: TaskId = Field(description="Set by the server; never used again.")
    uid: str = Field(
        description="An id of your own, else a UUID: 1 to 64 of `A-Z a-z 0-9 _ -`, not only "
        "digits. It makes a create safe to repeat, and stays."
    )
    etag: str = Field(description="The task's entity tag, to be sent as `If-Match`.")
    url: AnyUrl = Field(description="This task, under the address that it was asked through.")
    user_id: str = Field(description="The owner: from the path or the token.")
    title: str = Field(description="Trimmed; 1 to 200 characters after that.")
    description: str | None = Field(description="At most 10,000 characters.")
    completed: bool = Field(description="`false` in a new task unless it is sent.")
    completed_at: datetime | None = Field(
        description="When `completed` last turned true; `null` while it is false."
    )
    priority: fields.Priority = Field(description="`none` in a new task unless it is sent.")
    due_date: str | None = Field(
        pattern=fields.SHOWN_DUE_DATE,
        description="A day (`2026-11-21`), an instant (`2026-11-21T10:00:00+01:00`), which comes "
        "back in UTC, or a wall-clock time (`2026-11-21T10:00`).",
    )
    remind_at: str | None = Field(
        pattern=fields.SHOWN_DUE_DATE,
        description="When the client shall remind: as `due_date`, but no day.",
    )
    recurrence: str | None = Field(
        description="How it repeats (RFC 5545): `FREQ=WEEKLY;BYDAY=TU`. Completing it makes the "
        "next task, once. It needs a `due_date`."
    )
    repeat_from: fields.RepeatFrom = Field(
        description="What the next date counts from: the old one, or the day of completion."
    )
    tags: list[str] = Field(description="At most 20, trimmed, no repeats; their order is kept.")
    order: float | None = Field(description="A number for your own order, as of drag and drop.")
    deleted: bool = Field(
        description="In the trash, for 30 days; `false` brings the task back, as it was."
    )
    created_at: datetime = Field(description="Set by the server.")
    updated_at: datetime = Field(description="Set by the server.")


# ---- query strings: which tasks, in which order, which page (contract section 3)

MAX_PAGE: Final = 1000
NULLABLE: Final = ("due_date", "remind_at", "recurrence", "completed_at")  # `due_date=`: none
_MOST_FILTERS: Final = 30
_MOST_SORT_KEYS: Final = 8
_SORT_ALIASES: Final = {"created": "created_at", "updated": "updated_at"}
_NOT_GIVEN: Final[Any] = None
_ANY: Final = object()  # the value of a filter that lets everything through


_Q = Condition("text", "like")
_SEARCH: Final[Any] = Field(
    "",
    validation_alias=AliasChoices("q", "search"),
    description="Text in title or description, in upper or lower case.",
)


class TaskFilter(ByField):
    """Which tasks: all that is given must hold."""

    status: Annotated[
        Literal["all", "pending", "completed"],
        AfterValidator({"all": _ANY, "pending": False, "completed": True}.get),
        Condition("completed", "eq"),
    ] = Field("all", description="Whether completed.")
    q: Annotated[Folded, AfterValidator(lambda text: text or _ANY), _Q] = _SEARCH
    priority: Annotated[
        list[fields.Priority], AsList, AfterValidator(ranks), Condition("priority", "in")
    ] = Field([], fail_fast=True, description="Any of these; repeat it for several.")
    tag: Annotated[list[fields.Tag], AsList, Condition("tags", "eq")] = Field(
        [], fail_fast=True, description="All of these; repeat it for several."
    )
    overdue: Annotated[Flag, Condition("overdue", "eq")] = Field(
        _NOT_GIVEN, description="Due before now and not completed; a day is over at its end in UTC."
    )
    due_before: Annotated[DueFrom, Condition("due_date", "lt")] = Field(
        _NOT_GIVEN, description="Due before this day or instant."
    )
    due_after: Annotated[DueUntil, Condition("due_date", "gt")] = Field(
        _NOT_GIVEN, description="Due after this day or instant."
    )
    id: Annotated[list[TaskId], AsList, Condition("id", "in")] = Field(
        [], fail_fast=True, description="Any of these; repeat it for several."
    )
    deleted: Annotated[
        Flag, AfterValidator(lambda trash: trash or _ANY), Condition("deleted", "eq")
    ] = Field(_NOT_GIVEN, description="`true` for those in the trash, which else are left out.")

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, given: Any) -> Any:
        if len(given.keys() - {*PAGING, *SORTING}) > _MOST_FILTERS:
            raise broken(f"must not have more than {_MOST_FILTERS} filters")
        # A query string has neither; in the JSON of agents both say that there is no such filter.
        return {name: value for name, value in given.items() if value not in (None, [])}

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """What must hold, in one order whatever that of the query string: a shape is built once."""
        conditions = (
            condition._replace(value=value)
            for name in self.model_fields_set
            for condition in type(self).model_fields[name].metadata
            if isinstance(condition, Condition) and (value := getattr(self, name)) is not _ANY
        )
        return tuple(sorted(conditions, key=itemgetter(0, 1)))  # by column and operator


class BulkFilter(TaskFilter):
    """Which tasks a bulk call changes. What is empty is a form left blank, but for `NULLABLE`."""

    q: Annotated[Folded, WithJsonSchema({"type": "string", "minLength": 1}), _Q] = _SEARCH

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        null = (info.field_name or "").removesuffix("_ne") in NULLABLE
        if not null and (value == "" or (isinstance(value, list) and "" in value)):
            raise broken("must not be empty")
        return value


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise broken("must be text, given once")
    return given


def _sort_keys(text: Any) -> tuple[str, ...]:
    keys = []
    for key in map(str.strip, _text(text).split(",") if text != "" else ()):
        field = key.removeprefix("-")
        keys.append("-" * key.startswith("-") + _SORT_ALIASES.get(field, field))
    names = {key.removeprefix("-") for key in keys}
    if not names.issubset(SORTABLE) or len(names) > _MOST_SORT_KEYS:
        raise broken(f"must be a comma list of at most {_MOST_SORT_KEYS} of {', '.join(SORTABLE)}")
    return tuple(keys)


def _descending(text: Any) -> tuple[bool, ...]:
    orders = [order.strip().lower() for order in _text(text).split(",")]
    if not {"asc", "desc"}.issuperset(orders):
        raise broken("must be asc or desc, or a comma list of them")
    return tuple(order == "desc" for order in orders)


_SORT_KEY: Final = f"-?({'|'.join(SORTABLE)})"
OFFSETS: Final = ("offset", "_start", "_end", "_page")
PAGING: Final = ("limit", "_limit", "before", *OFFSETS)
SORTING: Final = ("sort", "_sort", "sort_by", "_order", "order")


class TaskQuery(TaskFilter):
    """Which tasks, in which order (descending with a leading `-`), and which page of them."""

    sort: Annotated[
        tuple[str, ...],
        BeforeValidator(_sort_keys),
        WithJsonSchema({"type": "string", "pattern": f"^({_SORT_KEY}(,{_SORT_KEY}){{0,7}})?$"}),
    ] = Field(
        (),
        validation_alias=AliasChoices("sort", "_sort", "sort_by"),
        description="Comma list of fields, `-` for descending: `-priority,due_date`. Without it "
        "the newest come first. Nulls are last both ways; equals go by `id`.",
    )
    direction: Annotated[tuple[bool, ...], BeforeValidator(_descending)] = Field(
        (), validation_alias=AliasChoices("_order", "order")
    )
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), PLAIN_DECIMAL] = Field(
        _NOT_GIVEN,
        validation_alias=AliasChoices("limit", "_limit"),
        description=f"How many at most; {MAX_PAGE} when not given.",
    )
    offset: Annotated[int, Field(ge=0, le=MAX_ID), PLAIN_DECIMAL] = Field(
        _NOT_GIVEN,
        validation_alias=AliasChoices("offset", "_start"),
        description="How many to skip.",
    )
    end: Annotated[int, Field(ge=1, le=MAX_ID), PLAIN_DECIMAL] = Field(_NOT_GIVEN, alias="_end")
    page: Annotated[int, Field(ge=1, le=MAX_ID // MAX_PAGE), PLAIN_DECIMAL] = Field(
        _NOT_GIVEN, alias="_page"
    )
    before: TaskId = Field(
        _NOT_GIVEN, description="What comes after the task with this `id`, without `sort`."
    )

    @field_validator("end")
    @classmethod
    def _end_after_start(cls, end: int, info: ValidationInfo) -> int:
        start = info.data.get("offset") or 0
        if info.data.get("limit") or not start < end <= start + MAX_PAGE:
            raise broken(f"must be 1 to {MAX_PAGE} more than _start, and without a limit")
        return end

    @field_validator("page")
    @classmethod
    def _page_alone(cls, page: int, info: ValidationInfo) -> int:
        if info.data.get("offset") is not None or info.data.get("end") is not None:
            raise broken("must not come with an offset")
        return page

    @field_validator("before")
    @classmethod
    def _before_in_default_order(cls, before: int, info: ValidationInfo) -> int:
        if any(info.data.get(name) for name in ("sort", "direction", "offset", "end", "page")):
            raise broken("must come without a sort and without an offset")
        return before

    @model_validator(mode="after")
    def _in_one_dialect(self) -> Self:
        """Say in `sort`, `limit` and `offset` what json-server says otherwise."""
        # A direction without a key turns the default order.
        keys = self.sort or ("id",) * bool(self.direction)
        ordered: dict[str, str] = {}  # a field that comes again orders nothing any more
        for key, turn in zip(keys, chain(self.direction, repeat(False)), strict=False):
            field = key.removeprefix("-")
            ordered.setdefault(field, "-" * (key.startswith("-") != turn) + field)
        self.sort = tuple(ordered.values())
        start = self.offset or 0
        self.limit = self.end - start if self.end else self.limit or MAX_PAGE
        self.offset = (self.page - 1) * self.limit if self.page else start
        return self


class Deletion(BaseModel, extra="forbid"):
    """How a task is deleted."""

    forever: Flag = Field(_NOT_GIVEN, description="Now and for good, also out of the trash.")


class Since(BaseModel, extra="forbid"):
    """Which changes of a user's tasks."""

    since: Annotated[int, Field(ge=0, le=MAX_ID), PLAIN_DECIMAL] = Field(
        0, description="The position that you have; 0 for all that there is."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), PLAIN_DECIMAL] = Field(
        MAX_PAGE, description="How many from which on the page ends; never within one change."
    )
    last_event_id: Annotated[int, Field(ge=0, le=MAX_ID), PLAIN_DECIMAL] = Field(
        0, alias="lastEventId", description="As `Last-Event-ID`, from an `EventSource` polyfill."
    )
    access_token: str = Field(
        "", description="The bearer token, for a page's `EventSource`, which sends no headers."
    )


# ---- answers


class GoneTask(BaseModel):
    """A task that was deleted for good."""

    model_config = example(id=8, uid="draft-8", deleted=True, gone=True)

    id: TaskId
    uid: str
    deleted: Literal[True]
    gone: Literal[True]


class Changes(BaseModel):
    """Every task that has changed since, as it is now; oldest change first."""

    model_config = example(
        changes=[{"id": 8, "uid": "draft-8", "deleted": True, "gone": True}],
        position=42,
        more=False,
    )

    changes: list[Task | GoneTask]
    position: int = Field(ge=1, le=MAX_ID, description="What to send as `since` the next time.")
    more: bool = Field(description="Whether the next page can be asked for at once.")


class Stats(BaseModel):
    """How many tasks there are, and in which state."""

    model_config = example(total=12, completed=4, pending=8, overdue=1)

    total: int
    completed: int
    pending: int
    overdue: int


class Updated(BaseModel):
    """How many tasks were changed."""

    model_config = example(updated=3)

    updated: int


class Deleted(BaseModel):
    """How many tasks were deleted."""

    model_config = example(deleted=3)

    deleted: int
