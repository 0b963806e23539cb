"""A TCP proxy on 127.0.0.1 that passes everything on a little later: a database that is far away.

`python -m bench.proxy LISTEN_PORT TARGET_PORT DELAY`, with the delay each way in seconds.
"""

import asyncio
import selectors
import sys


class Side(asyncio.Protocol):
    """One end of a connection; what comes in here leaves at the other end, later and in order."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self.early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.loop.call_later(self.delay, self.other.write, data)

    def write(self, data: bytes) -> None:
        """Pass `data` on, once there is a connection."""
        if self.transport is None:
            self.early.append(data)
        else:
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.loop.call_later(self.delay, self.other.transport.close)


async def serve(listen_port: int, target_port: int, delay: float) -> None:
    """Pass connections to `listen_port` on to `target_port` until cancelled."""
    loop = asyncio.get_running_loop()

    def accept() -> Side:
        near, far = Side(delay), Side(delay)
        near.other, far.other = far, near
        connecting = loop.create_connection(lambda: far, "127.0.0.1", target_port)
        task = loop.create_task(connecting)
        running.add(task)
        task.add_done_callback(running.discard)
        return near

    running: set[asyncio.Task[tuple[asyncio.Transport, Side]]] = set()
    server = await loop.create_server(accept, "127.0.0.1", listen_port)
    await server.serve_forever()


def main() -> None:
    """Run the proxy on a selector that waits to the microsecond; epoll's unit is a millisecond."""
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))


if __name__ == "__main__":
    main()
