"""Accounts as a page of another origin uses them, and as the document and its page show them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Database
from tests.contract.test_readme import (
    ACCOUNT,
    ACCOUNTS_PAGE,
    ADDRESS,
    HANDED_OVER,
    block,
    bundle,
    execute,
)
from tests.integration.test_accounts import bearer, sign_up, with_accounts
from tests.support.browser import Chromium, Page, Site
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.service import Service

# A page's whole life with the service; each line of `story` is what came of one call.
STORY = """
const story = [];
async function tell(...given) {
  try { const answer = await call(...given); story.push(200); return answer; }
  catch (error) { story.push(error.status); }
}
await tell("POST", "/api/auth/signup", { email: "ANN@example.com", password: "another one" });
await tell("POST", "/api/auth/login", { email: "ann@example.com", password: "wrong" });
const session = await call("POST", "/api/auth/login",
  { username: "Ann@Example.com", password: "correct horse" });
const token = session.access_token;
const listed = await call("GET", "/api/tasks", undefined, token);
await call("PUT", `/api/tasks/${task.id}`, { title: "Buy tea" }, token);
const toggled = await call("PATCH", `/api/tasks/${task.id}/complete`, undefined, token);
await call("DELETE", `/api/tasks/${task.id}`, undefined, token);
const left = await call("POST", "/api/tasks", { title: "left behind" }, token);
const bob = await call("POST", "/api/auth/signup",
  { email: "bob@example.com", password: "battery!" });
await tell("GET", `/api/tasks/${left.id}`, undefined, bob.access_token);
await tell("GET", `/api/${ann.user.id}/tasks`, undefined, bob.access_token);
await tell("PATCH", "/api/auth/me", { password: "a new one" }, token);
const changed = await call("PATCH", "/api/auth/me",
  { password: "a new one", current_password: "correct horse" }, token);
await tell("GET", "/api/auth/me", undefined, changed.access_token);
await tell("POST", "/api/auth/login", { email: "ann@example.com", password: "correct horse" });
await tell("DELETE", "/api/auth/me", { password: "a new one" }, changed.access_token);
await tell("POST", "/api/auth/login", { email: "ann@example.com", password: "a new one" });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.mark.parametrize("workers", [1, 4])
def test_a_page_lives_with_accounts_from_sign_up_to_deletion(
    browser: Chromium, new_database: Database, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    with (
        with_accounts(new_database, workers=workers) as service,
        Site(tmp_path) as site,
        browser.open(site.url) as page,
    ):
        page.evaluate(block(ACCOUNT).replace(ADDRESS, service.url) + STORY)
        assert page.evaluate("story") == [409, 401, 404, 403, 403, 200, 401, 200, 401]
        seen = page.evaluate("[listed[0].title, toggled.title, toggled.completed]")
        assert seen == ["Water the plants", "Buy tea", True]
        if workers == 1:  # on others the tokens end within a minute
            for token in ("token", "changed.access_token"):
                page.evaluate(f"await tell('GET', '/api/tasks', undefined, {token})")
            assert page.evaluate("story.slice(-2)") == [401, 401]


# What the page finds at its import map's addresses, which no test reaches.
LIBRARIES = """
export { default } from "htm";
export { createElement, useEffect, useState } from "react";
export { createRoot } from "react-dom/client";
"""
TITLES = "[...document.querySelectorAll('li input:not([type])')].map(each => each.value).join()"

# The list comes late: what is added meanwhile must not be lost.
LATE = """<script>
const fetched = window.fetch;
window.fetch = async (url, options) => {
  const answer = await fetched(url, options);
  if (options.method === "GET") {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    setTimeout(() => { window.listed = true; }, 100);
  }
  return answer;
};
</script>"""


def submit(page: Page, form: str, button: str, **fields: str) -> None:
    """Fill in a form of the page and press one of its buttons."""
    for name, value in fields.items():
        page.type(f"#{form} [name={name}]", value)
    page.click(f"#{form} button{f'[value={button}]' if button else ''}")


def said(page: Page, text: str) -> None:
    """Wait until the page shows this as what went wrong."""
    page.wait(f"document.querySelector('[role=alert]')?.innerText.includes({text!r})")


def test_the_react_page_takes_an_account_from_sign_up_to_deletion(
    browser: Chromium, new_database: Database, tmp_path: Path
) -> None:
    (tmp_path / "libraries.js").write_text(LIBRARIES)
    bundle(tmp_path, "libraries.js", "bundle.js", "--format=esm")
    workers = 4 if new_database.name == "postgresql" else 1
    with (
        with_accounts(new_database, workers=workers, KNOWN_FOR="0.5") as service,
        Site(tmp_path) as site,
        httpx2.Client(base_url=service.url) as client,
    ):
        html, found = re.subn('"https://esm.sh/.*?"', '"./bundle.js"', block(ACCOUNTS_PAGE))
        assert found == 3
        (tmp_path / "index.html").write_text(LATE + html.replace(ADDRESS, service.url))
        bob = sign_up(client, "bob@example.com")
        bobs = client.post("/api/tasks", json={"title": "Bob's"}, headers=bob.headers).json()
        with browser.open(site.url) as page:
            submit(page, "enter", "login", email="ann@example.com", password="correct horse")
            said(page, "The e-mail or the password is wrong.")
            submit(page, "enter", "signup", email="ann@example.com", password="correct horse")
            submit(page, "add", "", title="Water the plants")
            page.wait(f"window.listed && {TITLES} === 'Water the plants'")
            submit(page, "add", "", title="Buy milk")
            page.wait(f"{TITLES} === 'Buy milk,Water the plants'")
            page.type("li input:not([type])", "Buy tea")
            page.click("li input[type=checkbox]")
            page.wait("document.querySelector('li input').checked")
            page.click("li:last-child button")
            page.wait(f"{TITLES} === 'Buy tea'")
            submit(page, "add", "", title=" ")
            said(page, "title: must be 1 to 200 characters")

            # Log out and in again: all is there. Another user's is not.
            page.click("#account button[type=button]")
            submit(page, "enter", "login", email="Ann@Example.com", password="correct horse")
            page.wait(f"{TITLES} === 'Buy tea' && document.querySelector('li input').checked")
            page.evaluate(
                "const ask = async (method, path) => (await fetch(path, { method, headers: "
                "{ Authorization: `Bearer ${localStorage.token}` } })).status"
            )
            for method in ("GET", "DELETE"):
                for path, status in (("tasks", 403), (f"tasks/{bobs['id']}", 403)):
                    url = f"{service.url}/api/{bob.id}/{path}"
                    assert page.evaluate(f"await ask('{method}', '{url}')") == status
                url = f"{service.url}/api/tasks/{bobs['id']}"
                assert page.evaluate(f"await ask('{method}', '{url}')") == 404

            # A new password ends the token before it, and that leads back to the log-in page.
            page.evaluate("const old = localStorage.token")
            passwords = {"current_password": "wrong", "password": "a new password"}
            submit(page, "account", "change", **passwords)
            said(page, "The current password is wrong or missing.")
            passwords["current_password"] = "correct horse"
            submit(page, "account", "change", **passwords)
            page.wait("localStorage.token !== old && !document.querySelector('[role=alert]')")
            old = bearer(page.evaluate("localStorage.token = old"))
            url = f"{service.url}/api/tasks"
            wait_until(lambda: is_refused(url, old, workers), "the old token ends everywhere")
            submit(page, "add", "", title="too late")
            page.wait("document.querySelector('#enter') && !localStorage.token")
            submit(page, "enter", "login", email="ann@example.com", password="correct horse")
            said(page, "The e-mail or the password is wrong.")
            submit(page, "enter", "login", email="ann@example.com", password="a new password")
            page.wait(f"{TITLES} === 'Buy tea'")

            submit(page, "account", "delete", current_password="a new password")
            page.wait("document.querySelector('#enter') && !localStorage.token")
            submit(page, "enter", "login", email="ann@example.com", password="a new password")
            said(page, "The e-mail or the password is wrong.")
            assert page.errors == []
        left = client.get("/api/tasks", headers=bob.headers).json()
        assert [task["title"] for task in left] == ["Bob's"]


def is_refused(url: str, headers: dict[str, str], workers: int) -> bool:
    """Whether the token is refused by whatever worker takes the connection."""
    statuses = {httpx2.get(url, headers=headers).status_code for _ in range(5 * workers)}
    return statuses == {401}


def test_the_page_of_the_document_logs_in_by_its_button(
    browser: Chromium, new_database: Database
) -> None:
    with (
        with_accounts(new_database) as service,
        httpx2.Client(base_url=service.url) as client,
    ):
        ann = sign_up(client, "ann@example.com")
        with browser.open(f"{service.url}/docs") as page:
            page.click(".swagger-ui .btn.authorize")
            page.type("#oauth_username", ann.email)
            page.type("#oauth_password", "correct horse")
            page.click(".auth-btn-wrapper .authorize")
            page.wait("document.querySelector('.auth-container').innerText.includes('Authorized')")
            assert page.errors == []
            # Where every script of this origin could read it, for as long as the browser is there.
            stored = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
            assert "correct horse" not in page.evaluate(stored)


def test_the_document_has_the_calls_of_accounts_and_none_of_their_other_names(
    new_database: Database,
) -> None:
    with with_accounts(new_database) as service:
        document = httpx2.get(f"{service.url}/openapi.json").json()
    answers = {
        operation["operationId"]: "".join(sorted(f" {status}" for status in operation["responses"]))
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if path.startswith("/api/auth")
    }
    assert answers == {
        "signUp": " 201 400 409 413 415 422 500 503",
        "logIn": " 200 400 401 413 415 422 429 500 503",
        "getMe": " 200 401 500 503",
        "updateMe": " 200 400 401 403 413 415 422 429 500 503",
        "deleteMe": " 200 400 401 403 413 415 422 429 500 503",
    }
    assert document["paths"]["/api/auth/login"]["post"]["security"] == []
    password = document["components"]["schemas"]["SignUp"]["properties"]["password"]
    assert (password["minLength"], password["maxLength"]) == (8, 128)


@pytest.mark.parametrize("own", [[], [{"title": "own"}]])
@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_tasks_from_before_auth_are_handed_over_while_the_service_runs(
    name: str, own: list[dict[str, str]], own_postgres: Postgres, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db" if name == "sqlite" else own_postgres.create_database()
    with Service(DATABASE_URL=url) as service:
        before = [{"title": "one", "uid": "one"}, {"title": "two"}]
        httpx2.post(f"{service.url}/api/tasks", json=before).raise_for_status()
        httpx2.delete(f"{service.url}/api/tasks?title=two").raise_for_status()
    with (
        with_accounts(Database(name, url, "")) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        ann = sign_up(client, "ann@example.com")
        client.headers.update(bearer(ann.token))
        for task in own:
            client.post("/api/tasks", json=task).raise_for_status()
        tag = client.get("/api/tasks").headers["ETag"]
        known = client.get("/api/tasks/changes").json()["position"]
        execute(block(HANDED_OVER).replace("'ID'", f"'{ann.id}'"), url)
        page = client.get(f"/api/tasks/changes?since={known}").json()
        seen = [(task["title"], task["deleted"]) for task in page["changes"]]
        assert seen == [("one", False), ("two", True)]
        assert client.get("/api/tasks", headers={"If-None-Match": tag}).status_code == 200
        assert client.patch("/api/tasks/one", json={"priority": "high"}).status_code == 200
        assert client.get("/api/tasks/stats").json()["total"] == 1 + len(own)
