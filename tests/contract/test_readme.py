"""Every block in the README and in docs/, extracted and run as a reader would run it.

The exceptions are the two lines that run these tests; `.ci/run` takes the full one from the README.
"""

import ast
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import jwt
import psycopg2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import Task
from settings import Settings
from tests.integration.test_telemetry import Collector
from tests.support.browser import Chromium, Page, Site
from tests.support.needs import need
from tests.support.node import JS, node
from tests.support.postgres import Postgres
from tests.support.processes import Port, wait_until
from tests.support.service import REPOSITORY, Service

PAGES = {
    path: path.read_text()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
README = PAGES[REPOSITORY / "README.md"]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
BLOCKS: list[tuple[str, str]] = [block for page in PAGES.values() for block in FENCED.findall(page)]
RUN = ("sh", "-r requirements.txt &&")
TEST = ("sh", "-m pytest")
FETCH = ("js", "Buy milk")
REPEAT = ("js", "Idempotency-Key")
REACT = ("jsx", "export default")
TYPES = ("sh", "npx openapi-typescript")
TYPESCRIPT = ("ts", "createClient")
BETTER_AUTH = ("sh", "AUTH_JWKS_URL")
BETTER_AUTH_CALL = ("js", "/api/auth/token")
SECRET = ("sh", "AUTH_SECRET")
ACCOUNT = ("js", "/api/auth/signup")
ACCOUNTS_PAGE = ("html", "importmap")
SECRET_TOKEN = ("js", "SignJWT")
POSTGRESQL = ("sh", "postgresql://")
RIGHTS = ("sql", "GRANT")
RESTORED = ("sql", "forgotten = position")
HANDED_OVER = ("sql", "user_id = 'demo'")
WORKERS = ("sh", "--workers")
TELEMETRY = ("sh", "OTEL_EXPORTER")
DOCUMENT = ("sh", "main.app.openapi()")
AGENT = ("python", "from mcp.client")
EVENT_SOURCE = ("js", "document.body.textContent = [...tasks")
SYNCS = {  # by the script that tests it, in tests/js
    "rxdb": ("js", "replicateRxCollection"),
    "watermelondb": ("js", "synchronize"),
    "tanstack_db": ("js", "queryCollectionOptions"),
}
EXECUTED = [
    *(RUN, TEST, FETCH, REPEAT, REACT, TYPES, TYPESCRIPT, BETTER_AUTH, BETTER_AUTH_CALL, SECRET),
    *(SECRET_TOKEN, ACCOUNT, ACCOUNTS_PAGE, POSTGRESQL, WORKERS, TELEMETRY, DOCUMENT, AGENT),
    *(EVENT_SOURCE, *SYNCS.values()),  # by test_live_clients.py
    *(RIGHTS, HANDED_OVER, RESTORED),  # the second by test_accounts.py, the last by test_changes.py
]
ADDRESS = "http://localhost:8000"
API = PAGES[REPOSITORY / "docs/api.md"]


def block(which: tuple[str, str]) -> str:
    """The one block in this language with this text in it."""
    (found,) = (text for language, text in BLOCKS if language == which[0] and which[1] in text)
    return found


def section(title: str) -> str:
    """What the README has under this heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_block_that_could_run_is_run() -> None:
    languages = {"sh", "js", "jsx", "ts", "html", "python", "sql"}
    runnable = [text for language, text in BLOCKS if language in languages]
    assert sorted(runnable) == sorted(map(block, EXECUTED))
    untested = {language for language, _ in BLOCKS} - languages
    assert untested == {
        "json",
        "ini",
        "nginx",
        "py",
        "text",
        "yaml",
    }  # py: what needs a key of OpenAI


def test_the_sections_come_in_the_order_in_which_a_reader_needs_them() -> None:
    assert re.findall("^## (.*)$", README, re.M) == [
        "Run it",
        "Call it",
        "Test it",
        "The API at a glance",
        "Settings",
        "What it survives, and how fast it is",
        "How the code is laid out",
        "What is in docs/",
    ]


def test_the_readme_stays_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 200


def test_the_first_line_that_tests_is_the_one_that_tests_all() -> None:
    first = next(line for line in README.splitlines() if "-m pytest" in line)
    assert first == block(TEST).strip()


def test_the_line_that_is_quick_tests_both_databases() -> None:
    (line,) = re.findall("`.venv/bin/python (-m pytest [^`]*)`", README)
    command = [sys.executable, *line.split(), "--collect-only"]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sqlite" in result.stdout
    assert "postgresql" in result.stdout


def test_every_link_from_page_to_page_leads_somewhere() -> None:
    broken = []
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", FENCED.sub("", text)):
            if target.startswith("https://"):
                continue
            place = (page.parent / target).resolve() if target else page
            if not place.exists() or (anchor and anchor not in anchors(place)):
                broken.append((page.name, target, anchor))
    assert broken == []


def anchors(page: Path) -> list[str]:
    """What a link may name after `#`: the headings, as GitHub and others spell them."""
    headings = re.findall("^#+ (.*)$", FENCED.sub("", page.read_text()), re.M)
    return [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]


def test_every_page_of_the_docs_is_announced_in_the_readme() -> None:
    announced = re.findall(r"\(docs/(\w+\.md)\)", section("What is in docs/"))
    assert sorted(announced) == sorted(page.name for page in PAGES if page.parent.name == "docs")


# ---- the shell


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone of this work tree has."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (REPOSITORY / name).is_file():  # and has not just been deleted
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def set_up(clone: Path) -> Path:
    """A clone with this virtual environment as its own, which saves the time to make one."""
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


def environment(**variables: str) -> dict[str, str]:
    """As little as a login shell has, so that nothing of the tests' own leaks in."""
    return {"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], **variables}


def shell(script: str, directory: Path, **variables: str) -> None:
    """Run a block that ends."""
    command = ["bash", "-ec", script]
    subprocess.run(command, cwd=directory, env=environment(**variables), check=True, timeout=120)


def execute(script: str, url: str) -> None:
    """Run a block of SQL on a database."""
    if url.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.executescript(script)
            file.commit()
    else:
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            connection.cursor().execute(script)


class Running:
    """A server that a block has started; what it said is in `log`."""

    def __init__(self, url: str, output: Path) -> None:
        self.url = url
        self._output = output

    @property
    def log(self) -> str:
        return self._output.read_text()


@contextlib.contextmanager
def served(script: str, directory: Path, *, patience: float = 60) -> Iterator[Running]:
    """Run a block that starts the service, on a free port; stop it at the end."""
    port = Port()
    running = Running(f"http://127.0.0.1:{port.number}", directory / "output")
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-ec", script],
            cwd=directory,
            env=environment(UVICORN_PORT=str(port.number)),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        failed = ("Traceback", "ERROR")  # `--reload` goes on waiting for a better version
        wait_until(
            lambda: (
                answers(running.url)
                or process.poll() is not None
                or any(word in running.log for word in failed)
            ),
            "health",
            patience,
        )
        assert answers(running.url), running.log
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        port.release()


def answers(url: str, client: httpx2.Client | None = None) -> bool:
    """Whether the service is up."""
    try:
        return (client or httpx2).get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_run_line_is_all_it_takes(clone: Path) -> None:
    with served(block(RUN), clone, patience=240) as running:
        httpx2.post(f"{running.url}/api/tasks", json={"title": "first"}).raise_for_status()
        assert httpx2.get(f"{running.url}/docs/files/swagger-ui.css").status_code == 200
        assert f"try it at {running.url}/docs" in running.log
        # With a library for WebSockets uvicorn would close the connection without a word.
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        asked = httpx2.post(f"{running.url}/api/tasks", json={"title": "it"}, headers=upgrade)
        assert asked.status_code in (201, 400)
        assert asked.headers["X-Request-ID"]
        assert "Traceback" not in running.log
    assert (clone / "tasks.db").exists()


def test_the_lines_for_production_serve_with_several_workers(set_up: Path) -> None:
    with served(block(WORKERS), set_up) as running:
        assert httpx2.get(f"{running.url}/ready").status_code == 200
        ready = "Application startup complete"
        wait_until(lambda: running.log.count(ready) == 4, "four workers")


def test_the_unit_starts_what_was_tried() -> None:
    (unit,) = (text for language, text in BLOCKS if language == "ini")
    assert f"ExecStart=/srv/tasks/{block(WORKERS).strip()}\n" in unit


def test_the_lines_for_postgresql_serve_from_it(set_up: Path, own_postgres: Postgres) -> None:
    script, found = re.subn("'postgresql://[^']*'", f"'{own_postgres.create_database()}'",
                            block(POSTGRESQL))  # fmt: skip
    assert found == 1
    with served(script, set_up) as running:
        httpx2.post(f"{running.url}/api/tasks", json={"title": "task"}).raise_for_status()
        assert "PostgreSQL at 127.0.0.1" in running.log


def test_a_role_with_no_more_than_the_rights_of_the_page_serves(
    set_up: Path, own_postgres: Postgres
) -> None:
    owners = own_postgres.create_database()
    execute("CREATE ROLE tasks LOGIN PASSWORD 'few'", owners)
    (upgrade,) = set(re.findall("`(.venv/bin/alembic upgrade head)`", "".join(PAGES.values())))
    shell(upgrade, set_up, DATABASE_URL=owners)
    execute(block(RIGHTS), owners)
    settings = {"DATABASE_URL": re.sub("//.*@", "//tasks:few@", owners), "AUTH_SECRET": "x" * 32}
    line = " ".join(f"{name}={value}" for name, value in settings.items())
    with (
        served(f"{line} AUTH_ACCOUNTS=true .venv/bin/uvicorn main:app", set_up) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        person = {"email": "ann@example.com", "password": "correct horse"}
        token = client.post("/api/auth/signup", json=person).json()["access_token"]
        wrong = client.post("/api/auth/login", json=person | {"password": "wrong"})
        assert wrong.status_code == 401
        client.headers["Authorization"] = f"Bearer {token}"
        task = {"title": "task", "due_date": "2026-11-21", "recurrence": "FREQ=DAILY"}
        made = client.post("/api/tasks", json=task)
        done = client.patch(f"{made.headers['Location']}/complete", json={"completed": True})
        assert done.status_code == 200
        assert client.delete("/api/tasks").json() == {"deleted": 2}
        assert client.delete("/api/tasks?deleted=true").json() == {"deleted": 2}
        del person["email"]
        assert client.request("DELETE", "/api/auth/me", json=person).status_code == 200


def test_the_lines_for_opentelemetry_send_spans(set_up: Path) -> None:
    with Collector() as collector:
        script = block(TELEMETRY).replace("http://localhost:4318", collector.url)
        with served(script, set_up):
            wait_until(lambda: collector.named("GET /health"), "a span")


def test_the_line_for_the_document_writes_it_anew(set_up: Path) -> None:
    (set_up / "openapi.json").unlink()
    shell(block(DOCUMENT), set_up)
    assert (set_up / "openapi.json").read_text() == (REPOSITORY / "openapi.json").read_text()


# ---- the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture
def elsewhere(browser: Chromium, tmp_path: Path) -> Iterator[Page]:
    """An empty page of another origin than the service's."""
    (tmp_path / "index.html").write_text("<!doctype html>")
    with Site(tmp_path) as site, browser.open(site.url) as page:
        yield page


def at(service: Service, user: str, script: str) -> str:
    """The block for this service and, to keep tests apart, for this user."""
    return script.replace(f"{ADDRESS}/api/tasks", f"{service.url}/api/{user}/tasks")


def test_the_fetch_can_be_pasted(elsewhere: Page, service: Service, user: str) -> None:
    elsewhere.evaluate(at(service, user, block(FETCH)))
    (task,) = elsewhere.evaluate("tasks")
    assert (task["title"], task["due_date"]) == ("Buy milk", "2026-11-21")
    assert elsewhere.evaluate("created") == task


def test_the_example_of_safe_calls_does_what_it_says(
    elsewhere: Page, service: Service, user: str
) -> None:
    elsewhere.evaluate(at(service, user, block(REPEAT)))
    seen = "[first.status, again.status, again.headers.get('Idempotency-Replayed'), saved.status]"
    assert elsewhere.evaluate(seen) == [201, 201, "true", 200]
    (task,) = elsewhere.evaluate("await (await fetch(api)).json()")
    assert task["title"] == "Buy green tea"
    # A second time the tag is an old one, and the example says so.
    script = at(service, user, block(REPEAT))
    elsewhere.evaluate("const said = []; console.log = (line) => said.push(line)")
    elsewhere.evaluate(script[script.index("const saved") :])
    assert elsewhere.evaluate("[saved.status, said]") == [
        412,
        ["It has changed since: read it again."],
    ]


def test_the_react_app_lists_adds_toggles_and_shows_errors(
    browser: Chromium, service: Service, client: httpx2.Client, user: str, tmp_path: Path
) -> None:
    client.post(f"/api/{user}/tasks", json={"title": "there before"})
    (tmp_path / "App.jsx").write_text(at(service, user, block(REACT)))
    (tmp_path / "main.jsx").write_text(
        'import { createRoot } from "react-dom/client";\nimport App from "./App.jsx";\n'
        'createRoot(document.body.appendChild(document.createElement("div"))).render(<App />);\n'
    )
    (tmp_path / "index.html").write_text("<!doctype html><body><script src=app.js></script>")
    bundle(tmp_path, "main.jsx", "app.js", "--jsx=automatic")
    titles = "[...document.querySelectorAll('li')].map(each => each.innerText.trim()).join()"
    with Site(tmp_path) as site, browser.open(site.url) as page:
        page.wait(f"{titles} === 'there before'")
        page.type("input[name=title]", "new")
        page.click("button")
        page.wait(f"{titles} === 'new,there before'")
        page.click("button")  # the form is empty again
        page.wait("document.querySelector('[role=alert]')")
        assert page.evaluate("document.querySelector('[role=alert]').innerText") == (
            "title: must be 1 to 200 characters"
        )
        page.click("li input")
        page.wait("document.querySelector('li input').checked")
        page.wait("!document.querySelector('[role=alert]')")
        assert page.errors == []
    stored = {each["title"]: each["completed"] for each in client.get(f"/api/{user}/tasks").json()}
    assert stored == {"new": True, "there before": False}


def bundle(directory: Path, source: str, target: str, *options: str) -> None:
    """Make one script of `source` and what it imports."""
    command = [node(), str(JS / "node_modules/.bin/esbuild"), source, "--bundle", *options]
    packages = {"NODE_PATH": str(JS / "node_modules")}
    subprocess.run(
        [*command, f"--outfile={target}", "--log-level=warning"],
        cwd=directory,
        env=environment(**packages),
        check=True,
    )


def test_the_typescript_compiles_strictly_and_runs(tmp_path: Path) -> None:
    node()
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    options = {"strict": True, "noEmit": True, "moduleResolution": "bundler", "types": []}
    options |= {"skipLibCheck": True}
    options |= {"module": "esnext", "target": "es2022", "lib": ["es2022", "dom", "dom.iterable"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    with Service(DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
        httpx2.post(f"{service.url}/api/tasks", json={"title": "typed"}).raise_for_status()
        shell(block(TYPES).replace(ADDRESS, service.url), tmp_path)
        (tmp_path / "app.ts").write_text(block(TYPESCRIPT).replace(ADDRESS, service.url))
        shell("node_modules/.bin/tsc", tmp_path)
        bundle(tmp_path, "app.ts", "app.mjs", "--format=esm", "--platform=node")
        command = [node(), "app.mjs"]
        output = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert output.decode() == "[ 'typed' ]\n"


def test_the_python_agent_adds_and_finds(service: Service, client: httpx2.Client) -> None:
    script = block(AGENT).replace(ADDRESS, service.url)
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    number = int(output.decode().partition(" ")[0])
    assert f"'id': {number}, ".encode() in output
    assert client.delete(f"/api/tasks/{number}").json()["title"] == "Buy milk"


# ---- auth


class Issuer:
    """What Better Auth is to a browser: a token for who is signed in, and the keys to check it."""

    def __init__(self) -> None:
        key = Ed25519PrivateKey.generate()
        public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": public, "kid": "1", "alg": "EdDSA"}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://localhost:{self._server.server_port}"
        claims = {"sub": "zoe", "iss": self.url, "aud": self.url, "exp": int(time.time()) + 600}
        token = jwt.encode(claims, key, "EdDSA", headers={"kid": "1"})
        self.answers = {"/api/auth/jwks": {"keys": [jwk]}, "/api/auth/token": {"token": token}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer: Callable[[str], Any] = lambda path: self.answers[path]  # noqa: E731

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("access-control-allow-origin", self.headers.get("origin", "*"))
                self.send_header("access-control-allow-credentials", "true")
                self.end_headers()
                self.wfile.write(json.dumps(answer(self.path)).encode())

            def log_message(self, *_: object) -> None: ...

        return Handler

    def __enter__(self) -> "Issuer":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_the_lines_for_better_auth_let_its_users_in(elsewhere: Page, set_up: Path) -> None:
    with Issuer() as issuer:
        shell(block(BETTER_AUTH).replace("http://localhost:3000", issuer.url), set_up)
        with served(".venv/bin/uvicorn main:app", set_up) as running:
            script = block(BETTER_AUTH_CALL).replace("http://localhost:3000", issuer.url)
            elsewhere.evaluate(script.replace(ADDRESS, running.url))
            assert elsewhere.evaluate("[mine.status, await mine.json()]") == [200, []]
            assert httpx2.get(f"{running.url}/api/tasks").status_code == 401


def test_the_lines_for_a_shared_secret_let_its_users_in(set_up: Path) -> None:
    shell(block(SECRET), set_up)
    secret = (set_up / ".env.local").read_text().strip().partition("=")[2]
    assert len(secret) == 64
    node()
    (set_up / "node_modules").symlink_to(JS / "node_modules")
    (set_up / "token.mjs").write_text(f"{block(SECRET_TOKEN)}console.log(token);")
    environ = environment(AUTH_SECRET=secret)
    command = [node(), "token.mjs"]
    made = subprocess.run(command, cwd=set_up, env=environ, capture_output=True, check=True)
    headers = {"Authorization": f"Bearer {made.stdout.decode().strip()}"}
    with served(".venv/bin/uvicorn main:app", set_up) as running:
        assert httpx2.get(f"{running.url}/api/zoe/tasks", headers=headers).status_code == 200
        assert httpx2.get(f"{running.url}/api/tasks").status_code == 401


# ---- the proxy


def test_behind_the_nginx_of_the_docs_addresses_are_the_proxys(
    service: Service, user: str, tmp_path: Path
) -> None:
    nginx = need("nginx", "Debian's nginx")
    (site,) = (text for language, text in BLOCKS if language == "nginx")
    port = Port()
    site = site.replace("listen 443", f"listen 127.0.0.1:{port.number}")
    site = site.replace("127.0.0.1:8000", service.url.removeprefix("http://"))
    site = re.sub("/etc/letsencrypt/live/tasks.example.com", str(tmp_path), site)
    shell(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=tasks"
        " -keyout privkey.pem -out fullchain.pem",
        tmp_path,
    )
    places = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{site}}}\n"
    )
    command = [nginx, "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    proxy = f"https://127.0.0.1:{port.number}"
    tasks = f"{proxy}/api/{user}%20%C3%A9/tasks"
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
        httpx2.Client(trust_env=False, verify=False) as client,
    ):
        try:
            wait_until(lambda: answers(proxy, client), "nginx answers")
            created = client.post(tasks, json={"title": "x" * 200, "description": "y" * 10_000})
            assert created.status_code == 201
            assert created.json()["url"] == created.headers["location"]
            assert created.json()["url"].startswith(f"{tasks}/")
            assert client.get(created.json()["url"]).json() == created.json()
        finally:
            process.terminate()
            port.release()


# ---- what the pages say of the API and of the code


def test_the_error_that_is_shown_is_the_one_that_comes(client: httpx2.Client, user: str) -> None:
    shown = json.loads(block(("json", "request_id")))
    answer = client.post(f"/api/{user}/tasks", json={"title": ""}).json()
    assert answer | {"request_id": shown["request_id"]} == shown


def first_column(heading: str) -> list[str]:
    """The names in the first column of the tables whose head begins so."""
    tables = "".join(re.findall(rf"^\| {heading} \|.*\n(?:\|.*\n)+", API, re.M))
    return [name for cell in re.findall(r"^\|([^|]*)", tables, re.M)
            for name in re.findall("`(.*?)`", cell)]  # fmt: skip


def test_every_field_of_a_task_is_in_the_table() -> None:
    assert sorted(first_column("field")) == sorted(Task.model_fields)


def test_every_parameter_in_the_tables_is_in_the_document() -> None:
    document = json.loads((REPOSITORY / "openapi.json").read_text())
    parameters = document["paths"]["/api/tasks"]["get"]["parameters"]
    named = [name for name in first_column("parameter") if "FIELD" not in name and name[0] != "_"]
    described = {each["$ref"].rpartition("-")[2] for each in parameters}
    assert set(named) <= described


def test_every_setting_is_in_the_table() -> None:
    table = section("Settings").partition("| variable | default")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall("`([A-Z_]+)`", row[:50])]
    assert named == [name.upper() for name in Settings.model_fields]


def test_every_test_that_is_named_is_there() -> None:
    named = {name for page in PAGES.values() for name in re.findall(r"`(test_\w+\.py)`", page)}
    assert named <= {path.name for path in (REPOSITORY / "tests").rglob("test_*.py")}


def modules() -> list[str]:
    """The files and folders of the layout table, from top to bottom."""
    return re.findall(r"`([\w/]+(?:\.py|/))`", section("How the code is laid out"))


def test_the_layout_names_what_is_there_and_all_of_it() -> None:
    assert [name for name in modules() if not (REPOSITORY / name).exists()] == []
    rooms = [REPOSITORY, *(REPOSITORY / name for name in ("routes", "auth", "queries", "engines"))]
    files = {str(path.relative_to(REPOSITORY)) for room in rooms for path in room.glob("*.py")}
    assert {name for name in files if not name.endswith("__init__.py")} <= set(modules())


def test_imports_run_downwards_in_the_layout() -> None:
    files = [name for name in modules() if name.endswith(".py")]
    order = [name[:-3].replace("/", ".").removesuffix(".__init__") for name in files]
    upwards = []
    for place, module in enumerate(order):
        tree = ast.parse((REPOSITORY / files[place]).read_text())
        for each in tree.body:
            if isinstance(each, ast.ImportFrom):
                imported = [f"{each.module}.{name.name}" for name in each.names] + [each.module]
            elif isinstance(each, ast.Import):
                imported = [name.name for name in each.names]
            else:
                continue
            upwards += [(module, name) for name in imported if name in order[: place + 1]]
    assert upwards == []
