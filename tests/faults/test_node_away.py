"""A node behind the server is away (Citus): its users are told, all others are served."""

import logging
from urllib.parse import urlsplit

import httpx2
import pytest
import uvloop

from engines.postgres import Pool, Statement
from errors import Unavailable
from tests.support.api import create
from tests.support.postgres import Postgres
from tests.support.service import Service

# As Citus says it: an error on a connection that goes on.
AWAY = """CREATE FUNCTION on_node(owner text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            IF owner = 'away' OR owner = 'back' AND nextval('tries') = 1 THEN
              RAISE 'connection to the remote node failed' USING ERRCODE = %s;
            END IF;
            RETURN pg_backend_pid();
          END $$"""
ASK = "SELECT on_node(%(owner)s)"


@pytest.mark.parametrize("code", ["08006", "57P01"], ids=["gone", "shut down"])
def test_the_pool_keeps_its_connection(
    own_postgres: Postgres, url: str, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    name = urlsplit(url).path[1:]
    own_postgres.execute("CREATE SEQUENCE tries", database=name)
    own_postgres.execute(AWAY, code, database=name)

    async def scenario() -> None:
        pool = Pool(url, 1)

        async def ask(owner: str, *, repeatable: bool) -> int:
            (row,), _ = await pool.run(Statement(ASK, {"owner": owner}, repeatable))
            return int(row[0])

        pid = await ask("here", repeatable=False)
        for repeatable in (True, False):
            with pytest.raises(Unavailable) as error:
                await ask("away", repeatable=repeatable)
            # What is sent at most once may have been done (contract section 5).
            assert ("not known" in str(error.value.detail)) == (not repeatable and code == "08006")
            assert await ask("here", repeatable=False) == pid
        # The server kept a dead connection to a node that is back: what may is sent again.
        assert await ask("back", repeatable=True) == pid
        await pool.close()

    with caplog.at_level(logging.INFO, "tasks"):
        uvloop.run(scenario())
    assert caplog.messages == []


def test_its_users_are_told_and_all_others_are_served(own_postgres: Postgres, url: str) -> None:
    name = urlsplit(url).path[1:]
    with (
        Service(DATABASE_URL=url) as service,
        httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client,
    ):
        own_postgres.execute("CREATE SEQUENCE tries", database=name)
        own_postgres.execute(AWAY, "08006", database=name)
        own_postgres.execute(
            "ALTER TABLE task ADD CHECK (on_node(user_id) > 0) NOT VALID", database=name
        )
        backends = own_postgres.count_backends(name)
        for _ in range(20):
            answer = client.post("/api/away/tasks", json={"title": "x"})
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            create(client, "/api/here/tasks")
        assert client.get("/ready").status_code == 200
        assert len(client.get("/api/here/tasks").json()) == 20
        assert own_postgres.count_backends(name) == backends
        assert "database is away" not in service.log
