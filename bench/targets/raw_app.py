"""The ceiling of Python and driver: bare ASGI, psycopg2 asynchronous, JSON made by PostgreSQL.

It validates next to nothing and survives no failure: it shows what the rest of a service costs.
"""

import asyncio
import json
import os
from collections import deque
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, connection

POOL_SIZE = 10
READ = "SELECT row_to_json(task)::text FROM task WHERE user_id = %s AND id = %s"
LIST = """SELECT coalesce(json_agg(t), '[]')::text FROM (SELECT * FROM task WHERE user_id = %s
    ORDER BY created_at DESC, id DESC LIMIT 1000) t"""
CREATE = """INSERT INTO task
    (user_id, title, description, completed, priority, due_date, tags, "order") VALUES
    (%s, %s, %s, %s, %s, %s, %s::text[], %s) RETURNING row_to_json(task)::text"""
TOGGLE = """UPDATE task SET completed = NOT completed, updated_at = now(),
    completed_at = CASE WHEN completed THEN NULL ELSE now() END
    WHERE user_id = %s AND id = %s RETURNING row_to_json(task)::text"""
HEADERS = [(b"content-type", b"application/json")]


class Pool:
    """Connections that the event loop watches; a free one takes the next waiting statement."""

    def __init__(self) -> None:
        self.idle: list[tuple[connection, Any]] = []
        self.busy: dict[int, tuple[connection, Any, asyncio.Future[str | None]]] = {}
        self.waiting: deque[tuple[str, tuple[Any, ...], asyncio.Future[str | None]]] = deque()

    async def open(self) -> None:
        """Connect `POOL_SIZE` times."""
        loop = asyncio.get_running_loop()
        for _ in range(POOL_SIZE):
            conn = psycopg2.connect(os.environ["DATABASE_URL"], async_=1)
            while (state := conn.poll()) != POLL_OK:
                ready = loop.create_future()
                watch = loop.add_reader if state == POLL_READ else loop.add_writer
                unwatch = loop.remove_reader if state == POLL_READ else loop.remove_writer
                watch(fd := conn.fileno(), ready.set_result, None)
                await ready
                unwatch(fd)
            loop.add_reader(conn.fileno(), self._readable, conn.fileno())
            self.idle.append((conn, conn.cursor()))

    def run(self, statement: str, *parameters: Any) -> asyncio.Future[str | None]:
        """Send one statement; the future holds the only column of the only row, or None."""
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        if self.idle:
            self._send(*self.idle.pop(), statement, parameters, future)
        else:
            self.waiting.append((statement, parameters, future))
        return future

    def _send(
        self,
        conn: connection,
        cursor: Any,
        statement: str,
        parameters: tuple[Any, ...],
        future: asyncio.Future[str | None],
    ) -> None:
        # A task fits the socket's buffer whole: there is never a rest to write.
        cursor.execute(statement, parameters)
        self.busy[conn.fileno()] = conn, cursor, future

    def _readable(self, fd: int) -> None:
        conn, cursor, future = self.busy[fd]
        if conn.poll() != POLL_OK:
            return
        row = cursor.fetchone()
        del self.busy[fd]
        if self.waiting:
            self._send(conn, cursor, *self.waiting.popleft())
        else:
            self.idle.append((conn, cursor))
        if not future.done():
            future.set_result(row[0] if row else None)


pool = Pool()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve the four operations and `/health`."""
    if scope["type"] == "lifespan":
        await receive()
        await pool.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    status, body = 200, None
    match scope["method"], scope["path"].split("/"):
        case "GET", ["", "health"]:
            body = "{}"
        case "GET", ["", "api", user_id, "tasks"]:
            body = await pool.run(LIST, user_id)
        case "GET", ["", "api", user_id, "tasks", task_id]:
            body = await pool.run(READ, user_id, int(task_id))
        case "PATCH", ["", "api", user_id, "tasks", task_id, "complete"]:
            body = await pool.run(TOGGLE, user_id, int(task_id))
        case "POST", ["", "api", user_id, "tasks"]:
            raw, more = b"", True
            while more:
                message = await receive()
                raw, more = raw + message["body"], message["more_body"]
            task = json.loads(raw)
            status, body = (
                201,
                await pool.run(
                    CREATE,
                    user_id,
                    task["title"],
                    task.get("description"),
                    task.get("completed", False),
                    task.get("priority", "none"),
                    task.get("due_date"),
                    task.get("tags", []),
                    task.get("order"),
                ),
            )
    if body is None:
        status, body = 404, '{"detail": "Not Found"}'
    content = body.encode()
    length = (b"content-length", b"%d" % len(content))
    await send({"type": "http.response.start", "status": status, "headers": [*HEADERS, length]})
    await send({"type": "http.response.body", "body": content})
