"""The page at /docs in a real browser that can reach nothing but the service."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

import openapi
from tests.support.browser import Chromium, Page
from tests.support.processes import wait_until
from tests.support.service import Service


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


def open_docs(browser: Chromium, service: Service) -> Page:
    page = browser.open(f"{service.url}/docs")
    page.wait("document.querySelector('.opblock')")
    return page


def test_the_page_lists_every_operation_and_loads_nothing_from_elsewhere(
    browser: Chromium, service: Service
) -> None:
    with open_docs(browser, service) as page:
        listed = "[...document.querySelectorAll('.opblock')].map(each => each.id)"
        documented = httpx2.get(f"{service.url}/openapi.json").json()["paths"].values()
        ids = {each["operationId"] for methods in documented for each in methods.values()}
        assert {each.rpartition("-")[2] for each in page.evaluate(listed)} == ids
        assert page.evaluate("document.querySelector('.swagger-ui .btn.authorize')") is None
        assert page.errors == []
        elsewhere = [each for each in page.requests if not each.startswith(("data:", service.url))]
        assert elsewhere == []


def test_create_can_be_tried_out_on_the_page(
    browser: Chromium, service: Service, client: httpx2.Client, user: str
) -> None:
    block = "#operations-user_tasks-createUserTask"
    with open_docs(browser, service) as page:
        page.click(f"{block} .opblock-summary-control")
        page.wait(f"document.querySelector('{block} .execute')")
        page.type(f"{block} input[placeholder=user_id]", user)
        page.click(f"{block} .execute")
        page.wait(f"document.querySelector('{block} .live-responses-table')")
        shown = page.evaluate(f"document.querySelector('{block} .live-responses-table').innerText")
    (task,) = client.get(f"/api/{user}/tasks").json()
    assert "201" in shown
    assert f'"url": "{task["url"]}"' in shown


def test_with_auth_on_the_page_has_an_authorize_button(browser: Chromium, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/tasks.db"
    with (
        Service(DATABASE_URL=database, AUTH_SECRET="s" * 32) as service,
        open_docs(browser, service) as page,
    ):
        page.wait("document.querySelector('.swagger-ui .btn.authorize')")


def test_accounts_can_be_tried_out_as_they_stand_and_the_button_logs_in(
    browser: Chromium, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/tasks.db"
    with (
        Service(DATABASE_URL=database, AUTH_SECRET="s" * 32, AUTH_ACCOUNTS="true") as service,
        open_docs(browser, service) as page,
    ):
        for call, status in (("signUp", 201), ("logIn", 200)):
            assert execute(page, f"#operations-accounts-{call}").startswith(str(status))
        page.click(".swagger-ui .btn.authorize")
        page.type("#oauth_username", "ann@example.com")
        page.type("#oauth_password", "correct horse")
        page.click(".modal-ux .btn.authorize")
        page.wait("document.querySelector('.modal-ux').innerText.includes('Logout')")
        page.click(".modal-ux .btn-done")
        for call in ("accounts-getMe", "tasks-listTasks", "accounts-deleteMe"):
            assert execute(page, f"#operations-{call}").startswith("200"), call


def execute(page: Page, block: str) -> str:
    """Try an operation out as the page has it; return what is shown of the answer."""
    page.click(f"{block} .opblock-summary-control")
    table = f"document.querySelector('{block} .live-responses-table tbody')"
    before = len(page.requests)
    for _ in range(5):
        page.click(f"{block} .execute")
        with suppress(TimeoutError):
            page.wait(table, 3)
        # A click at once may come before the page has taken in its own example: nothing is sent.
        if any("/api/" in url for url in page.requests[before:]):
            break
    page.wait(table)
    return str(page.evaluate(f"{table}.innerText")).strip()


def test_the_root_leads_to_the_page(client: httpx2.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/docs"


def test_behind_a_path_prefix_the_page_asks_for_its_parts_there(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/tasks.db"
    with Service(DATABASE_URL=database, args=["--root-path", "/todo"]) as service:
        page = httpx2.get(f"{service.url}/docs").text
        assert httpx2.get(f"{service.url}/").headers["location"] == "/todo/docs"
    for part in ("docs/files/swagger-ui-bundle.js", "docs/files/swagger-ui.css", "openapi.json"):
        assert f"/todo/{part}" in page


def test_there_is_nothing_but_the_page_and_its_parts(client: httpx2.Client) -> None:
    assert client.get("/docs/files/swagger-ui.css").status_code == 200
    for name in ("files", "files/..%2Fcore.py", "files/index.html", "index.html", "swagger-ui.css"):
        answer = client.get(f"/docs/{name}")
        assert (answer.status_code, answer.json()["status"]) == (404, 404)


def test_the_parts_can_only_be_read(client: httpx2.Client) -> None:
    answer = client.post("/docs/files/swagger-ui.css")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert client.head("/docs/files/swagger-ui.css").status_code == 200
    assert client.options("/docs/files/swagger-ui.css").status_code == 204


def test_the_log_links_to_the_page_once_however_many_workers(tmp_path: Path) -> None:
    with Service(DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db", workers=2) as service:
        ready = "Application startup complete"
        wait_until(lambda: service.log.count(ready) == 2, "both workers are up")
        assert service.log.count(f"{service.url}/docs\n") == 1


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("", "http://127.0.0.1:8000/docs"),
        ("--host 0.0.0.0 --port 80 --root-path /x/", "http://localhost:80/x/docs"),
        ("--host :: --ssl-certfile its", "https://localhost:8000/docs"),
        ("--uds its.socket", "/docs"),
        ("--fd 3", "/docs"),
        ("--port 0", "/docs"),
    ],
)
def test_the_start_links_to_it_where_uvicorn_listens(
    monkeypatch: pytest.MonkeyPatch, options: str, address: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "main:app", *options.split()])
    assert openapi.address() == address
