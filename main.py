"""The app: `uvicorn main:app`.

A request passes the envelope (request id, log line, shape of the path), CORS, then the router.
Whatever fails on the way comes back as a problem, see `errors.py`.
"""

import asyncio
import gc
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from random import getrandbits
from time import perf_counter
from typing import Final, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import errors
import openapi
from auth import Owners
from database import Database, StartupError
from door import LARGE, Clients, Cors, Door, not_lost, to_the_end, transport_of
from errors import ApiError
from logs import Log
from openapi import OPEN, refusals
from routes.live import Live, has_token
from routes.mcp import build_mcp
from routes.route import ShortWay
from routes.tasks import build_router
from settings import Settings, env_files, load_settings, refuse_to_start
from trash import keep_emptying

log = logging.getLogger("tasks")

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
_THIS_MACHINE: Final = r"https?://(localhost|127\.0\.0\.1)(:[0-9]+)?"
_STOPPING: Final = "The service is stopping; whether this was done is not known."


class Health(BaseModel):
    """All is well."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"]


class Envelope:
    """What every request gets: an id, a log line, HEAD where GET is, a path without last slash,
    CORS, and a problem for an error that nothing else has caught.

    It is around Starlette's middleware, not one of it, for the outermost of that would answer such
    an error: without CORS headers a browser would report a CORS failure instead.
    """

    def __init__(
        self, app: ASGIApp, cors: Cors, door: Door, short: ShortWay | None, lines: Log | None
    ) -> None:
        self.app = cors.app = app
        self.cors = cors
        self.door = door
        self.short = short
        self.clients = Clients()
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = perf_counter()
        status = 0
        if transport := transport_of(receive):
            self.clients.begin(transport)
        headers = dict(scope["headers"])
        receive, send = to_the_end(scope, headers, receive, send)
        # A client's own, if that is a sane one; a new one need not be a secret, only differ.
        given = _REQUEST_ID.fullmatch(headers.get(b"x-request-id", b""))
        request_id = given[0].decode() if given else f"{getrandbits(128):032x}"
        added = [(b"x-request-id", request_id.encode())]
        method, path, root = scope["method"], scope["path"], scope.get("root_path", "")
        inner = {**scope, "request_id": request_id}
        if method == "HEAD":  # uvicorn leaves the body out
            inner |= {"method": "GET", "head": True}
        if root:  # as `--root-path` gives it: with slashes at its ends, or none
            shape = f"/{root.strip('/')}".rstrip("/")
            path = inner["path"] = shape + path[len(root) :]
            root = inner["root_path"] = shape
        # A call for a task whose id is empty is never one for all tasks; `tasks` may be a uid.
        for_one = method in ("PATCH", "DELETE") and re.search("(?<!/tasks)/tasks/$", path)
        if path[-1:] == "/" and path != root + "/" and not for_one:
            inner["path"] = path[:-1]
        if method != "OPTIONS":
            added += self.cors.allow(headers.get(b"origin"))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += added
            if transport:
                self.clients.note(transport)
            try:
                if not transport or len(message.get("body", b"")) <= LARGE:
                    await send(message)
                elif not await self.clients.send(message, send, transport):
                    status = 499  # as in other logs: the client went away
            except RuntimeError:  # of pipelined requests uvicorn sees only the last one's client go
                if not (transport and transport.is_closing()):
                    raise
                status = 499

        try:
            if b"upgrade" in headers or method == "CONNECT":  # before what leaves the line open
                receive, closing = await not_lost(scope, headers, receive)
                added += closing
            self.door.admit(scope, headers, transport)
            if method == "OPTIONS":
                await self.cors(inner, receive, send_with_id)
            elif self.short and (route := self.short.find(inner)):
                await route.handle(inner, receive, send_with_id)
            else:
                await self.app(inner, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            if status:
                raise
            if isinstance(error, asyncio.CancelledError):
                gone = transport and transport.is_closing()  # else uvicorn's time to end is up
                # Nobody reads a 499; the log says what happened.
                error = ApiError(499, "") if gone else errors.Unavailable(_STOPPING)
            if not isinstance(error, ApiError):
                log.error("unexpected error, request %s", request_id, exc_info=error)
                error = ApiError(500, errors.SORRY)
            if method == "OPTIONS":
                added += self.cors.allow(headers.get(b"origin"))
            await errors.problem(Request(inner), error)(inner, receive, send_with_id)
        finally:
            if self.lines:
                spent = perf_counter() - started
                self.lines.request(method, scope["raw_path"], status, spent, request_id)


def create_app(settings: Settings) -> FastAPI:
    """Return the service for these settings."""
    log.handlers = [lines := Log()]
    log.propagate = False
    log.setLevel(settings.log_level.upper())
    database = Database(settings)
    owners = Owners(settings, database)
    live = Live(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            with _ended_by_signals():
                await database.open()
        except StartupError as error:
            refuse_to_start(str(error))
        # The envelope writes the line a request; uvicorn looks whether anyone listens to its own.
        logging.getLogger("uvicorn.access").handlers.clear()
        logging.getLogger("uvicorn.access").propagate = False
        # What it says of each WebSocket, where a library for them is there, has the query string,
        # and so a token.
        logging.getLogger("uvicorn.error").addFilter(lambda it: '"WebSocket ' not in str(it.msg))
        if owners.tokens:
            await owners.tokens.open()
        live.open()
        emptying = asyncio.create_task(keep_emptying(database))
        gc.freeze()  # what start-up made lives as long as the process: never garbage
        # A request makes hardly any cycles; looking for them every 700 objects took 10 % of it.
        gc.set_threshold(20_000, 3, 2)
        if multiprocessing.current_process().name in ("MainProcess", "SpawnProcess-1"):
            for line in _welcome(settings, database):  # once, however many workers
                log.info("%s", line)
        yield
        emptying.cancel()
        await database.close()

    cors = Cors(
        Response(),  # until the envelope has the app
        allow_origins=settings.cors_origins,
        allow_origin_regex=None if settings.cors_origins else _THIS_MACHINE,
        allow_methods=errors.METHODS,
        allow_headers=("*",),
        # Many pages send them; no cookie is read here.
        allow_credentials="*" not in settings.cors_origins,
        allow_private_network=True,  # a public page may call a service in a private network
        expose_headers=sorted(openapi.HEADERS.keys() - {"WWW-Authenticate"}),
        max_age=7200,
    )
    open_to_all = settings.auth_on or "*" in settings.cors_origins
    door = Door(None if open_to_all else settings.cors_origins)
    path = "/api/{user_id:user}/tasks"
    refused = (401, 403) if owners.tokens else ()  # without a good token, with another user's
    named = build_router(database, owners.named, path, refused, live)
    own = build_router(database, owners.current, "/api/tasks", refused[:1], live)
    telemetry = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    # What is measured and traced goes the long way, where FastAPI looks on.
    short = None if telemetry else ShortWay([*named.routes, *own.routes])
    app = FastAPIOffline(
        **openapi.ABOUT,
        lifespan=lifespan,
        telemetry={
            **dict.fromkeys(("auto_configure", "tracing", "metrics", "logs"), telemetry),
            "exclude": has_token,
        },
        exception_handlers=errors.HANDLERS,
        redirect_slashes=False,
        routes=build_mcp(owners, settings.auth_issuer, cors, own, named),
    )
    app.include_router(named)
    app.include_router(own)

    if owners.tokens and owners.tokens.accounts:
        from routes.accounts import build_accounts_router

        app.include_router(build_accounts_router(owners.tokens.accounts, owners.tokens))

    @app.get("/health", tags=["service"], openapi_extra=OPEN)
    async def get_health() -> Health:
        """The process is up; nothing else is asked."""
        return Health(status="ok")

    @app.get("/ready", tags=["service"], openapi_extra=OPEN, responses=refusals(503))
    async def get_readiness() -> Health:
        """The database answers and its schema is current."""
        if not await database.is_current():
            raise errors.Unavailable("The database does not have this version's schema.")
        return Health(status="ok")

    openapi.install(app, auth_on=settings.auth_on)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        return RedirectResponse(request.scope.get("root_path", "") + "/docs")

    # What goes the short way has no use for the rest: to pass it took a twentieth of a get.
    told = lines if log.isEnabledFor(logging.INFO) else None
    app.middleware_stack = Envelope(app.build_middleware_stack(), cors, door, short, told)
    return app


def _ended_by_signals() -> ExitStack:
    """Let signals end the process at once until this closes: uvicorn heeds them after the start."""
    restoring = ExitStack()
    with suppress(ValueError):  # only the main thread has signals
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.signal(number, signal.SIG_DFL)
            restoring.callback(signal.signal, number, handler)
            if getattr(getattr(handler, "__self__", None), "should_exit", False):
                signal.raise_signal(number)  # it came while uvicorn was loading this module
    return restoring


def _welcome(settings: Settings, database: Database) -> list[str]:
    origins = ", ".join(settings.cors_origins)
    files = " and ".join(env_files()) or "neither .env.local nor .env"
    return [
        f"settings are those of the environment and, in {os.getcwd()}, of {files}",
        f"tasks are in {database}",
        "auth is on: the token says who the user is"
        if settings.auth_on
        else "auth is off: anyone may act as any user",
        f"pages of {origins} may call"
        if origins
        else "pages of localhost and 127.0.0.1 may call; for others set CORS_ORIGINS",
        f"try it at {openapi.address()}",
    ]


app = create_app(load_settings())
