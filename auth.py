"""Who is asking: turns a request into the user whose tasks it is about."""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from fastapi import Request

from schemas import UserId
from settings import Settings


class Owner(NamedTuple):
    """A user, and the absolute URL of the user's tasks under the mount that was asked."""

    user_id: str
    url: str


class Owners:
    """The dependencies of the two mounts."""

    def __init__(self, settings: Settings) -> None:
        self._default = settings.default_user_id

    async def current(self, request: Request) -> Owner:
        """Return the current user: the token's, or without auth the default one."""
        return Owner(self._default, _collection(request, "/api/tasks"))

    async def named(self, request: Request, user_id: UserId) -> Owner:
        """Return the user that the path names."""
        return Owner(user_id, _collection(request, _path_of(user_id)))


def _collection(request: Request, path: str) -> str:
    scope = request.scope
    host = request.headers.get("host") or ":".join(map(str, scope["server"] or ("localhost",)))
    return f"{scope['scheme']}://{host}{scope.get('root_path', '')}{path}"


@lru_cache(maxsize=4096)
def _path_of(user_id: str) -> str:
    return f"/api/{quote(user_id, safe='!$&()*+,:;=@')}/tasks"
