"""Connections that died while nobody used them are noticed before they cost anybody a request."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.load import Load, use_of_a_task
from tests.support.needs import need
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres
from tests.support.service import Service

REQUESTS = 200


@pytest.fixture(params=["PostgreSQL", "PgBouncer"])
def kill(
    request: pytest.FixtureRequest, own_postgres: Postgres
) -> Iterator[tuple[Service, Callable[[], object]]]:
    """A service with four workers, and what kills every connection that it has to its database."""
    url = own_postgres.create_database()
    name = urlsplit(url).path[1:]
    if request.param == "PostgreSQL":
        with Service(DATABASE_URL=url, DB_POOL_SIZE="5", workers=2) as service:
            yield service, lambda: own_postgres.terminate_backends(name)
    else:
        need("pgbouncer", "apt-get install pgbouncer")
        with (
            PgBouncer(own_postgres) as bouncer,
            Service(DATABASE_URL=bouncer.url(name), DB_POOL_SIZE="5", workers=2) as service,
        ):
            yield service, bouncer.restart


def test_the_requests_after_all_idle_connections_were_killed_succeed(
    kill: tuple[Service, Callable[[], object]], user: str
) -> None:
    service, kill_connections = kill
    for clients in (20, 1, 20):
        with Load(service.url, use_of_a_task(user), clients=20) as load:
            load.wait_for(200, 100)  # every worker has opened all its connections
        kill_connections()
        with Load(service.url, use_of_a_task(user), clients=clients) as load:
            load.wait_for(200, REQUESTS)
        assert {answer.status for answer in load.answers} == {200, 201}
