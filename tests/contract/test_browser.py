"""A page on another origin does everything with `fetch` in a real browser, or is refused there."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Database
from tests.support.browser import Chromium, Page, Site
from tests.support.processes import wait_until
from tests.support.service import Service

# What a frontend has: a function that calls, one that lives a user's day, one that looks again.
PAGE = """
<!doctype html>
<meta charset="utf-8">
<title>a frontend</title>
<script>
async function call(method, url, body, headers = {}) {
  const options = { method, headers };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json", ...headers };
  }
  const answer = await fetch(url, options);
  return { status: answer.status, headers: answer.headers, body: await answer.json() };
}

async function live(tasks) {
  const seen = {};
  const milk = await call("POST", tasks, { title: " Buy milk 🥛 ", tags: ["home"] });
  seen.created = [milk.status, milk.body.title, milk.headers.get("Location") === milk.body.url];
  const bread = await call("POST", tasks, { title: "Buy bread" });
  const junk = await call("POST", tasks, { title: "Junk" });

  const list = await call("GET", `${tasks}?sort=id&limit=2`);
  seen.listed = [list.status, list.body.map((task) => task.title)];
  seen.readable = [list.headers.get("X-Total-Count"), /rel="next"/.test(list.headers.get("Link"))];
  seen.identified = /^[0-9a-f]{32}$/.test(list.headers.get("X-Request-ID"));

  const etag = milk.headers.get("ETag");
  const edited = await call("PUT", milk.body.url, { title: "Buy oat milk" }, { "If-Match": etag });
  seen.edited = [edited.status, edited.body.title, edited.body.tags];
  const late = await call("PATCH", milk.body.url, { title: "Buy tea" }, { "If-Match": etag });
  seen.late = [late.status, late.body.title];

  const done = await call("PATCH", `${bread.body.url}/complete`);
  seen.toggled = [done.status, done.body.completed, done.body.completed_at !== null];
  const deleted = await call("DELETE", junk.body.url);
  seen.deleted = [deleted.status, deleted.body.title];
  const again = await call("DELETE", junk.body.url);
  seen.missing = [again.status, again.body.message];
  const bad = await call("POST", tasks, { titel: "x" });
  seen.refused = [bad.status, typeof bad.body.message];
  seen.left = await look(tasks);
  return seen;
}

async function look(tasks) {
  return (await call("GET", `${tasks}?sort=id`)).body;
}

async function attempt(method, url, body) {
  try {
    return (await call(method, url, body)).status;
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}
</script>
"""
EVIL = "evil.example"


class OpenChromium(Chromium):
    """A browser that finds the evil host on this machine too."""

    def _command(self) -> list[str]:
        *command, blank = super()._command()
        rules = f"MAP {EVIL} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
        return [*command, f"--host-resolver-rules={rules}", blank]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """One browser for all pages."""
    with OpenChromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The frontend's own server."""
    directory = tmp_path_factory.mktemp("frontend")
    (directory / "index.html").write_text(PAGE)
    with Site(directory) as site:
        yield site


def lived(tasks: str, left: list[Any]) -> dict[str, Any]:
    """Return what the page sees on a user's first day, but for the two tasks that are left."""
    missing = int(left[1]["url"].rpartition("/")[2]) + 1
    return {
        "created": [201, "Buy milk 🥛", True],
        "listed": [200, ["Buy milk 🥛", "Buy bread"]],
        "readable": ["3", True],
        "identified": True,
        "edited": [200, "Buy oat milk", ["home"]],
        "late": [412, "Precondition Failed"],
        "toggled": [200, True, True],
        "deleted": [200, "Junk"],
        "missing": [404, f"There is no task {missing}."],
        "refused": [422, "string"],
        "left": left,
    }


def test_a_page_does_everything_for_two_users_and_a_restart_loses_nothing(
    browser: Chromium, site: Site, new_database: Database
) -> None:
    with Service(DATABASE_URL=new_database.url) as service:
        users = [f"{service.url}/api/{user}/tasks" for user in ("ann", "auth0%7Cbob")]
        with browser.open(f"{site.url}/") as page:
            before = []
            for tasks in users:
                seen = page.evaluate(f"await live({tasks!r})")
                assert seen == lived(tasks, seen["left"])
                assert [(task["title"], task["completed"]) for task in seen["left"]] == [
                    ("Buy oat milk", False),
                    ("Buy bread", True),
                ]
                before.append(seen["left"])
            ann, bob = before
            assert {task["user_id"] for task in ann} == {"ann"}
            assert {task["user_id"] for task in bob} == {"auth0|bob"}
            # The browser asked first, as it does for everything beyond plain GET and POST.
            urls = (users[0], ann[0]["url"], f"{ann[1]['url']}/complete")
            asked = [f"OPTIONS {urlsplit(url).path} 200" for url in urls]
            wait_until(
                lambda: all(line in service.log for line in asked), f"{asked} in {service.log}"
            )

            service.restart()
            assert [page.evaluate(f"await look({tasks!r})") for tasks in users] == before
            stolen = ann[0]["url"].replace("/ann/", "/auth0%7Cbob/")
            assert page.evaluate(f"await attempt('PUT', {stolen!r}, {{title: 'stolen'}})") == 404
            assert page.errors == []


def test_the_browser_refuses_a_page_of_another_origin(
    browser: Chromium, site: Site, service: Service, tasks: str
) -> None:
    url = service.url + tasks
    evil = site.url.replace("localhost", EVIL)

    def attempts(page: Page) -> list[Any]:
        calls = ("'GET', URL", "'POST', URL, {title: 'x'}", "'DELETE', URL")
        return [page.evaluate(f"await attempt({call.replace('URL', repr(url))})") for call in calls]

    with browser.open(f"{evil}/") as page:
        assert page.evaluate("location.origin") == evil
        assert attempts(page) == ["TypeError: Failed to fetch"] * 3
    # The same page, from where it may call: nothing of all that has arrived.
    with browser.open(f"{site.url}/") as page:
        assert page.evaluate(f"await look({url!r})") == []
        assert attempts(page) == [200, 201, 200]
