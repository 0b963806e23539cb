"""Tokens as frontends get them: from Better Auth's JWT plugin, and from jose."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.node import JS, node
from tests.support.service import Service

SECRET = "a secret that frontend and service share, é"


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Any]]:
    """By algorithm: a user, a token, and the URL of the Better Auth that made it."""
    command = [node(), "better_auth.mjs", SECRET]
    with subprocess.Popen(
        command, cwd=JS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, "Node has not got that far; see what it wrote"
            yield json.loads(line)
        finally:
            process.kill()


def settings_for(algorithm: str, url: str) -> dict[str, str]:
    if algorithm == "HS256":
        return {"AUTH_SECRET": SECRET}
    keys = {"AUTH_JWKS_URL": f"{url}/api/auth/jwks"}
    return keys | {"AUTH_ISSUER": url, "AUTH_AUDIENCE": url}


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256", "HS256"])
def test_a_token_that_javascript_made_opens_the_tasks_of_its_user(
    made: dict[str, Any], algorithm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    user, token = made[algorithm]["user"], made[algorithm]["token"]
    settings: dict[str, Any] = settings_for(algorithm, made[algorithm].get("url", ""))
    database = f"sqlite:///{tmp_path_factory.mktemp('auth')}/tasks.db"
    headers = {"Authorization": f"Bearer {token}"}
    with (
        Service(DATABASE_URL=database, **settings) as service,
        httpx2.Client(
            base_url=service.url, headers=headers, trust_env=False, verify=False
        ) as client,
    ):
        assert client.post("/api/tasks", json={"title": "mine"}).json()["user_id"] == user
        assert len(client.get(f"/api/{user}/tasks").json()) == 1
        assert client.get("/api/somebody-else/tasks").status_code == 403
        other = made["ES256" if algorithm == "EdDSA" else "EdDSA"]["token"]
        for wrong in (other, token[:-3], ""):
            answer = client.get("/api/tasks", headers={"Authorization": f"Bearer {wrong}".strip()})
            assert answer.status_code == 401
