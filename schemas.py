"""What comes in and goes out: the types of the API, each rule stated once.

Bodies are strict: a JSON boolean is a boolean and nothing else is. Queries arrive as text and are
read by `TaskFilter.parse`.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from models import Priority

MAX_ID: Final = 2**53 - 1  # the largest integer that JavaScript holds exactly
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Clients take `.` and `..` out of a path and would ask for somebody else's tasks. U+FFFD is what a
# path that is not UTF-8 decodes to: two such users would be one.
_USER_ID = re.compile(r"(?!(?:tasks|\.{1,2})$)[^/\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]{1,128}")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_INSTANT = re.compile(  # RFC 3339 section 5.6
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


def _broken(rule: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def timestamp(moment: datetime) -> str:
    """Return an instant as RFC 3339 text in UTC, to the microsecond, ending in Z."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@dataclass(frozen=True)
class Characters:
    """Says of a string how many characters it has; NUL is refused, since PostgreSQL lacks it."""

    most: int
    least: int = 0
    trimmed: bool = False

    def check(self, value: str) -> str:
        """Return the value, trimmed if that is asked for, or raise the rule that it breaks."""
        value = value.strip() if self.trimmed else value
        if not self.least <= len(value) <= self.most:
            bounds = f"{self.least} to {self.most}" if self.least else f"at most {self.most}"
            raise _broken(f"must be {bounds} characters")
        if _UNSTORABLE.search(value):
            raise _broken("must not hold a NUL character or a lone surrogate")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bounds = {"maxLength": self.most} | ({"minLength": self.least} if self.least else {})
        # Something must be left of what is trimmed.
        pattern = r"^[^\x00]*[^\x00\s][^\x00]*$" if self.trimmed else r"^[^\x00]*$"
        return handler(schema) | bounds | {"pattern": pattern}


def _user_id(value: str) -> str:
    if not _USER_ID.fullmatch(value):
        raise _broken("must be 1 to 128 characters without / and controls, and not tasks, . or ..")
    return value


def _due_date(value: str) -> str | None:
    try:
        if not value:
            return None
        if _DAY.fullmatch(value):
            return date.fromisoformat(value).isoformat()
        if _INSTANT.fullmatch(value):
            return timestamp(datetime.fromisoformat(value.upper()))
    except (ValueError, OverflowError):
        pass
    raise _broken(
        "must be a day (2026-11-21) or a timestamp with a UTC offset (2026-11-21T10:00:00Z)"
    )


def _distinct(tags: list[str]) -> list[str]:
    if len(set(tags)) < len(tags):
        raise _broken("must not repeat a tag")
    return tags


UserId = Annotated[
    str,
    AfterValidator(_user_id),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "pattern": r"^(?!(?:tasks|\.{1,2})$)[^/\x00-\x1f\x7f-\x9f\ufffd]+$",
        }
    ),
]
TaskId = Annotated[int, Field(ge=1, le=MAX_ID)]
Title = Annotated[str, Characters(200, 1, trimmed=True)]
Description = Annotated[str, Characters(10_000)]
Tag = Annotated[str, Characters(50, 1, trimmed=True)]
Tags = Annotated[
    list[Tag],
    Field(max_length=20, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
DueDate = Annotated[
    str,
    AfterValidator(_due_date),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date"},
                {"type": "string", "format": "date-time"},
                {"type": "string", "maxLength": 0},
            ]
        }
    ),
]
# Adding 0.0 turns the -0.0 that only one of the databases would keep into 0.0.
Order = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda order: order + 0.0)]


def _idempotency_key(value: str) -> str:
    if not re.fullmatch("[!-~]{1,255}", value):
        raise _broken("must be 1 to 255 visible ASCII characters")
    return value


IdempotencyKey = Annotated[str, AfterValidator(_idempotency_key)]
READ_ONLY: Final = frozenset({"id", "url", "user_id", "completed_at", "created_at", "updated_at"})


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Body(BaseModel):
    """A request body: strict types, unknown fields refused, read-only fields ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_read_only(cls, body: Any) -> Any:
        if isinstance(body, dict) and not READ_ONLY.isdisjoint(body):
            return {name: value for name, value in body.items() if name not in READ_ONLY}
        return body


class TaskCreate(Body):
    """A task to create; only the title is required."""

    model_config = _example(title="Buy milk", due_date="2026-11-21", tags=["shopping"])

    title: Title
    description: Description | None = None
    completed: bool = False
    priority: Priority = "none"
    due_date: DueDate | None = None
    tags: Tags = []
    order: Order | None = None


class TaskUpdate(Body):
    """The fields to change; one that is left out stays, `null` clears one that may be null."""

    model_config = _example(priority="high")

    # The None of a field that may not be null only ever stands for "not sent".
    title: Title = None  # type: ignore[assignment]
    description: Description | None = None
    completed: bool = None  # type: ignore[assignment]
    priority: Priority = None  # type: ignore[assignment]
    due_date: DueDate | None = None
    tags: Tags = None  # type: ignore[assignment]
    order: Order | None = None


class Completion(Body):
    """Whether the task shall be completed."""

    model_config = _example(completed=True)

    completed: bool


class Task(BaseModel):
    """A task as the API shows it."""

    model_config = _example(
        id=7,
        url="http://localhost:8000/api/tasks/7",
        user_id="demo",
        title="Buy milk",
        description="The one in glass",
        completed=True,
        completed_at="2026-11-21T07:15:00.654321Z",
        priority="high",
        due_date="2026-11-21",
        tags=["shopping"],
        order=1.5,
        created_at="2026-11-20T18:30:00.123456Z",
        updated_at="2026-11-21T07:15:00.654321Z",
    )

    id: TaskId = Field(description="Set by the server; never used again.")
    url: AnyUrl = Field(description="This task, under the address that it was asked through.")
    user_id: str = Field(description="The owner: from the path or the token.")
    title: str = Field(description="Trimmed; 1 to 200 characters after that.")
    description: str | None = Field(description="At most 10,000 characters.")
    completed: bool = Field(description="`false` in a new task unless it is sent.")
    completed_at: datetime | None = Field(
        description="When `completed` last turned true; `null` while it is false."
    )
    priority: Priority = Field(description="`none` in a new task unless it is sent.")
    due_date: date | datetime | None = Field(
        description="A day (`2026-11-21`), which stays a day, or an instant with a UTC offset "
        '(`2026-11-21T10:00:00+01:00`), which comes back in UTC. `""` means `null`.'
    )
    tags: list[str] = Field(description="At most 20, trimmed, no repeats; their order is kept.")
    order: float | None = Field(description="A number for your own order, as of drag and drop.")
    created_at: datetime = Field(description="Set by the server.")
    updated_at: datetime = Field(description="Set by the server.")


class Stats(BaseModel):
    """How many tasks there are, and in which state."""

    model_config = _example(total=12, completed=4, pending=8, overdue=1)

    total: int
    completed: int
    pending: int
    overdue: int


class Updated(BaseModel):
    """How many tasks were changed."""

    model_config = _example(updated=3)

    updated: int


class Deleted(BaseModel):
    """How many tasks were deleted."""

    model_config = _example(deleted=3)

    deleted: int


class Health(BaseModel):
    """All is well."""

    model_config = _example(status="ok")

    status: Literal["ok"]


class FieldError(BaseModel):
    """One rule that the request broke."""

    field: str
    message: str
    in_: Literal["body", "path", "query", "header"] = Field(alias="in")


class Problem(BaseModel):
    """An error, as RFC 9457 writes it; `detail` and `message` are the same plain sentence."""

    type: str
    title: str
    status: int
    detail: str
    message: str
    errors: list[FieldError]
    request_id: str
