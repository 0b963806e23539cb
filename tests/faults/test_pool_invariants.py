"""What the pool promises on a wire that delays, freezes and cuts, before a server that cancels, to
callers who go away.
"""

import asyncio
from random import Random
from urllib.parse import urlsplit

import pytest
import uvloop

from engines.postgres import Pool, Statement, Undone
from errors import Unavailable
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

SIZE = 3
DEADLINE = 0.9  # seconds; the server gets the first 0.4 of them
SLACK = 1.0  # seconds: a tick, and a machine that is busy
WRITE = """WITH written AS (INSERT INTO effects VALUES (%(n)s) RETURNING id)
           SELECT id, pg_sleep(%(seconds)s) FROM written"""
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = %s"
Outcome = str | type[BaseException]


class Callers:
    """Callers of a pool, who note what they were told and how long it took."""

    def __init__(self, pool: Pool, random: Random) -> None:
        self.pool = pool
        self.random = random
        self.told: dict[int, Outcome] = {}
        self.longest = 0.0

    async def call(self, n: int) -> None:
        """Write the row `n`, which takes too long every third time; some callers go away."""
        loop = asyncio.get_running_loop()
        seconds = self.random.choice([0, 0.05, 2])
        patience = self.random.choice([None, None, None, 0.1])
        began = loop.time()
        try:
            async with asyncio.timeout(patience):
                parameters = {"n": n, "seconds": seconds, "owner": self.random.choice("abc")}
                await self.pool.run(
                    Statement(WRITE, parameters, repeatable=False, seconds=DEADLINE)
                )
            self.told[n] = "done"
        except (Unavailable, TimeoutError) as error:
            self.told[n] = type(error)
        self.longest = max(self.longest, loop.time() - began)

    async def go_on(self, numbers: range, ended: asyncio.Event) -> None:
        for n in numbers:
            if ended.is_set():
                return
            await self.call(n)


async def break_the_wire(
    proxy: Proxy, server: Postgres, name: str, random: Random, *, cuts: bool
) -> None:
    """Do the wire, and the statements, one harm after the other, for some seconds."""
    for _ in range(12):
        harm = random.choice(["delay", "freeze", "cut" if cuts else "freeze", "cancel", "nothing"])
        if harm == "delay":
            await asyncio.to_thread(proxy.delay, random.choice([0, 0.01, 0.05]))
        elif harm == "freeze":
            await asyncio.to_thread(proxy.freeze)
            await asyncio.sleep(random.choice([0.05, 0.5, 1.5]))
            await asyncio.to_thread(proxy.thaw)
        elif harm == "cancel":
            await asyncio.to_thread(server.execute, CANCEL, name)
        elif harm == "cut":
            await asyncio.to_thread(proxy.cut)
            await asyncio.sleep(0.5)  # what it leaves at the server has ended
        await asyncio.sleep(random.uniform(0, 0.6))


@pytest.mark.parametrize("cuts", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_wire_does(
    own_postgres: Postgres, url: str, busy: list[int], seed: int, cuts: bool
) -> None:
    name = urlsplit(url).path[1:]
    own_postgres.execute("CREATE TABLE effects (id int)", database=name)
    random = Random(seed)

    async def scenario(proxy: Proxy) -> Callers:
        pool = Pool(proxy.through(url), SIZE)
        callers = Callers(pool, random)
        ended = asyncio.Event()
        going = [
            asyncio.create_task(callers.go_on(range(k * 10_000, (k + 1) * 10_000), ended))
            for k in range(4 * SIZE)
        ]
        await break_the_wire(proxy, own_postgres, name, random, cuts=cuts)
        ended.set()
        await asyncio.gather(*going)
        # It works again as if nothing had been.
        rows = await pool.run(Statement("SELECT 1", {}, repeatable=True))
        assert rows == ([(1,)], 1)
        await pool.close()
        return callers

    loop = asyncio.new_event_loop if seed == 0 else uvloop.new_event_loop
    with Proxy(own_postgres.port) as proxy, asyncio.Runner(loop_factory=loop) as runner:
        del busy[:]
        callers = runner.run(scenario(proxy))
    wait_until(lambda: own_postgres.count_backends(name) == 0, "all is over")

    # What a cut leaves behind ends at its limit: nobody could be asked whether it has.
    assert max(busy) <= (2 * SIZE if cuts else SIZE)
    assert callers.longest < DEADLINE + SLACK
    rows = own_postgres.execute("SELECT id FROM effects", database=name)
    written = {n for (n,) in rows}
    assert len(written) == len(rows), "one was sent twice"
    for n, outcome in callers.told.items():
        if outcome == "done":
            assert n in written
        elif outcome is Undone:
            assert n not in written
    assert {"done", Undone} <= set(callers.told.values())
