"""What the databases spell differently, as the service reads it."""

import time
from collections.abc import Iterator

import pytest

from engines.spelling import read_timestamp


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A process whose own time is not UTC."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (None, None),
        ("2026-11-21 10:00:00.000001", "2026-11-21T10:00:00.000001Z"),  # SQLite
        ("2026-11-21 10:00:00", "2026-11-21T10:00:00.000000Z"),  # SQLite's CURRENT_TIMESTAMP
        ("2026-11-21 10:00:00.000001+00", "2026-11-21T10:00:00.000001Z"),
        ("2026-11-21 10:00:00.5+00", "2026-11-21T10:00:00.500000Z"),
        ("2026-11-21 10:00:00.123+00", "2026-11-21T10:00:00.123000Z"),
        ("2026-11-21 10:00:00+00", "2026-11-21T10:00:00.000000Z"),
        ("2026-11-21 10:00:00.12345+00", "2026-11-21T10:00:00.123450Z"),
        ("2026-11-21 12:00:00+02", "2026-11-21T10:00:00.000000Z"),
        ("2026-11-21 12:00:00.5+02", "2026-11-21T10:00:00.500000Z"),
        ("2026-11-21 12:00:00.123+02", "2026-11-21T10:00:00.123000Z"),
        ("2026-11-21 15:30:00.000001+05:30", "2026-11-21T10:00:00.000001Z"),
        ("1889-12-31 23:40:28.25-00:19:32", "1890-01-01T00:00:00.250000Z"),
    ],
)
def test_an_instant_reads_the_same_from_both_and_in_every_time_zone(
    stored: str | None, shown: str | None
) -> None:
    assert read_timestamp(stored) == shown
