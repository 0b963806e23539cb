"""The primary dies, its standby takes over, and the service goes on by itself."""

import time
from urllib.parse import urlsplit

import httpx2

from tests.support.load import Load
from tests.support.postgres import Postgres, failover_url
from tests.support.service import Service
from tests.support.writers import Writers


def test_writes_go_on_after_a_failover_and_nothing_acknowledged_is_lost(tasks: str) -> None:
    with Postgres() as primary:
        name = urlsplit(primary.create_database()).path[1:]
        with (
            Postgres.standby_of(primary) as standby,
            Service(DATABASE_URL=failover_url(primary, standby, database=name)) as service,
        ):
            pids = service.pids
            writers = Writers(tasks)
            with Load(service.url, writers.write) as load:
                load.wait_for(201, 200)
                primary.kill()
                load.wait_for(503, 20)  # there is nobody who takes writes
                standby.promote()
                promoted = time.monotonic()
                load.wait_for(201, 1, timeout=5)
                load.wait_for(201, 200)
            late = [answer for answer in load.since(promoted + 5) if answer.status == 503]
            assert late == []
            assert service.pids == pids
            with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
                writers.check(client)
