"""Accounts as a page of another origin uses them, and as the document and its page show them."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Database
from tests.contract.test_readme import ACCOUNT, ADDRESS, block
from tests.integration.test_accounts import sign_up, with_accounts
from tests.support.browser import Chromium, Site

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
