"""The two databases, each behind a `Pool`: the result of one statement, or `Unavailable`."""

from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

# Seconds within which a call is answered, queueing and connecting included; and a call that may
# touch all that a user has.
DEADLINE: Final = 4.0
BULK_DEADLINE: Final = 30.0
TICK: Final = 0.2  # seconds between two looks at the deadlines, also while waiting for a lock


class Result(NamedTuple):
    """The rows of a statement, and how many rows it touched."""

    rows: list[tuple[Any, ...]]
    touched: int


class Job(Protocol):
    """A statement of somebody's, until when it may wait, and the future of its result."""

    owner: Any
    deadline: float
    rows: Future[Result]


J = TypeVar("J", bound=Job)


class Queue(dict[Any, deque[J]]):
    """The jobs that wait: each owner's in their order, the owners in turn."""

    def add(self, job: J, *, first: bool = False) -> None:
        """Put a job after those of its owner, or before them."""
        jobs = self.setdefault(job.owner, deque())
        jobs.insert(0 if first else len(jobs), job)

    def take(self, may: Callable[[J], bool]) -> J | None:
        """Take a job that may go, of the owner whose last turn is longest ago."""
        for owner, jobs in self.items():
            if may(jobs[0]):
                del self[owner]
                if len(jobs) > 1:
                    self[owner] = jobs
                return jobs.popleft()
        return None

    def take_all(self) -> list[J]:
        """Take every job."""
        jobs = [job for waiting in self.values() for job in waiting]
        self.clear()
        return jobs

    def take_late(self, moment: float) -> list[J]:
        """Take the jobs whose deadline is before that; forget those that nobody waits for."""
        jobs = [job for job in self.take_all() if not job.rows.done()]
        for job in jobs:
            if job.deadline >= moment:
                self.add(job)
        return [job for job in jobs if job.deadline < moment]
