"""The task as the tutorials write it: one SQLModel family for the sync and the async service."""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import ARRAY, BigInteger, String, Text
from sqlmodel import Field, SQLModel


class Priority(StrEnum):
    none = "none"
    low = "low"
    medium = "medium"
    high = "high"
    urgent = "urgent"


class TaskBase(SQLModel):
    title: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=10_000, sa_type=Text)
    completed: bool = False
    priority: Priority = Field(default=Priority.none, sa_type=String)
    due_date: str | None = Field(default=None, sa_type=Text)
    tags: list[str] = Field(default_factory=list, sa_type=ARRAY(Text))
    order: float | None = None


class Task(TaskBase, table=True):
    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    user_id: str
    completed_at: datetime | None = None
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def toggle(self) -> None:
        """Flip `completed` and keep the timestamps in step."""
        self.updated_at = datetime.now(UTC)
        self.completed = not self.completed
        self.completed_at = self.updated_at if self.completed else None


class TaskCreate(TaskBase):
    pass


class TaskPublic(TaskBase):
    id: int
    user_id: str
    completed_at: datetime | None
    created_at: datetime
    updated_at: datetime
