"""The service inside the test's own process, for tests that reach into it."""

from typing import Any

from starlette.testclient import TestClient

from main import create_app
from settings import Settings


def in_process(**settings: Any) -> TestClient:
    """Return a client of a service of its own with these settings; it answers 500 as a server does.

    It opens the database on entering: `with in_process(database_url=url) as client: ...`
    """
    app = create_app(Settings(_env_file=None, **settings))
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False)
