"""Who is asking: from a request to the user whose tasks it is about."""

from functools import lru_cache
from typing import Annotated, NamedTuple
from urllib.parse import quote

from fastapi import Path, Request

from database import Database
from errors import ApiError
from fields import UserId
from settings import Settings

UserInPath = Annotated[UserId, Path(description="Any text of 1 to 128 characters without `/`.")]


class Owner(NamedTuple):
    """A user, and the absolute URL of the user's tasks under the mount that was asked."""

    user_id: str
    url: str


class Owners:
    """The dependencies that say whose tasks a request is about, one for each mount."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._default_user_id = settings.default_user_id
        self.tokens = None
        if settings.auth_on:
            from auth.tokens import Tokens  # with its cryptography that is 10 MB a process

            self.tokens = Tokens(settings, database)

    async def current(self, request: Request) -> Owner:
        """Return the current user: the token's, or with auth off the default one."""
        user_id = await self.tokens.user_of(request) if self.tokens else self._default_user_id
        return Owner(user_id, _collection(request, "/api/tasks"))

    async def named(self, request: Request, user_id: UserInPath) -> Owner:
        """Return the user that the path names; with auth on that is the token's, or 403."""
        if self.tokens and await self.tokens.user_of(request) != user_id:
            raise ApiError(403, "The token is for another user.")
        return Owner(user_id, _collection(request, _path_of(user_id)))


def _collection(request: Request, path: str) -> str:
    scope = request.scope
    given = next((value for name, value in scope["headers"] if name == b"host"), b"")
    host = given.decode("latin-1") or _address(*scope["server"] or ("", None))
    return f"{scope['scheme']}://{host}{scope.get('root_path', '')}{path}"


def _address(server: str, port: int | None) -> str:
    """Return where the request came in, as a URL has it; on a Unix socket there is no port."""
    if port is None:
        return "localhost"
    return f"[{server}]:{port}" if ":" in server else f"{server}:{port}"


@lru_cache(maxsize=1024)
def _path_of(user_id: str) -> str:
    return f"/api/{quote(user_id, safe='!$&()*+,:;=@')}/tasks"
