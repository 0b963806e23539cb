"""What was acknowledged survives every crash; what was not is there whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from tests.support.load import Load
from tests.support.postgres import Postgres
from tests.support.processes import Daemon
from tests.support.service import Service
from tests.support.writers import Writers

CRASHES = 10
WRITERS = 8


@pytest.fixture(params=["service on SQLite", "service on PostgreSQL", "PostgreSQL"])
def victim(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Daemon]]:
    """A service, and what is to be killed: itself, or its database."""
    with ExitStack() as stack:
        if request.param == "service on SQLite":
            url = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/tasks.db"
        else:
            postgres = stack.enter_context(Postgres())
            url = postgres.url()
        service = stack.enter_context(Service(DATABASE_URL=url))
        yield service, postgres if request.param == "PostgreSQL" else service


def test_every_acknowledged_write_survives_every_crash(
    victim: tuple[Service, Daemon], tasks: str
) -> None:
    service, crashing = victim
    writers = Writers(tasks)
    with Load(service.url, writers.write, WRITERS) as load:
        for crash in range(CRASHES):
            load.wait_for(201, 10 + 5 * crash)
            crashing.kill()
            crashing.start()
        load.wait_for(201, 10)
    assert crashing is service or service.running
    assert len(writers.uncertain) >= CRASHES  # or it did not crash in mid-load
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        writers.check(client)
