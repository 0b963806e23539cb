"""Accounts: signing up, logging in, what ends a token, and what an attacker gets to see."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit
from uuid import UUID, uuid4

import httpx2
import jwt
import psycopg2
import pytest
import sqlalchemy

from auth import accounts
from database import Database as Store
from queries import Query
from settings import Settings
from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.app import in_process
from tests.support.postgres import Postgres, Server
from tests.support.problems import CORS, assert_problem
from tests.support.service import REPOSITORY, Service
from tests.support.tokens import Key, base64url, to_bytes

SECRET = "a secret of no less than 32 bytes"
ON = {"AUTH_SECRET": SECRET, "AUTH_ACCOUNTS": "true"}
PASSWORD = "correct horse"


def with_accounts(database: Database, **settings: Any) -> Service:
    quick: dict[str, Any] = {"app": "tests.support.quick_hashes:app", **ON}
    return Service(**{**quick, "DATABASE_URL": database.url, **settings})


@pytest.fixture(scope="module")
def service(database: Database, run_on: dict[str, Any]) -> Iterator[Service]:
    """The service with accounts on."""
    with with_accounts(database, **run_on) as service:
        yield service


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.url, trust_env=False, verify=False, headers=CORS)


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    """A page of the service."""
    with client_of(service) as client:
        yield client


@pytest.fixture
def email() -> str:
    """An e-mail address that no other test knows."""
    return f"{uuid4().hex}@example.com"


class Person(NamedTuple):
    """An account as its owner has it."""

    email: str
    id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.token)


@pytest.fixture
def ann(client: httpx2.Client, email: str) -> Person:
    """Somebody who has just signed up."""
    return sign_up(client, email)


@pytest.fixture
def bob(client: httpx2.Client) -> Person:
    """Somebody else."""
    return sign_up(client, f"{uuid4().hex}@example.com")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_up(client: httpx2.Client, email: str, password: str = PASSWORD) -> Person:
    answer = client.post("/api/auth/signup", json={"email": email, "password": password})
    assert answer.status_code == 201, answer.text
    return Person(email, answer.json()["user"]["id"], answer.json()["access_token"])


def log_in(
    client: httpx2.Client, email: str, password: str = PASSWORD, address: str = "192.0.2.1"
) -> httpx2.Response:
    """Try to log in; `address` is where the request seems to come from."""
    body = {"email": email, "password": password}
    return client.post("/api/auth/login", json=body, headers={"X-Forwarded-For": address})


def statuses(client: httpx2.Client, email: str, tries: int, **where: str) -> list[int]:
    """The answers to so many wrong passwords, one after the other."""
    return [log_in(client, email, "wrong", **where).status_code for _ in range(tries)]


def delete_me(client: httpx2.Client, person: Person, **body: Any) -> httpx2.Response:
    return client.request("DELETE", "/api/auth/me", json=body, headers=person.headers)


def at_once(calls: int, call: Any) -> list[httpx2.Response]:
    with ThreadPoolExecutor(calls) as threads:
        return list(threads.map(lambda _: call(), range(calls)))


def rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    """What the database itself answers."""
    store = Store(Settings(_env_file=None, database_url=database.url))
    with store.schema_transaction() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def let_pass(database: Database, seconds: float) -> None:
    """Make every failure so much older."""
    rows(database, f"UPDATE task_failed_login SET failed_at = failed_at - {seconds}")


# ---- signing up and logging in


def test_signing_up_answers_a_token_for_a_new_user(client: httpx2.Client, email: str) -> None:
    body = {"email": email, "password": PASSWORD, "name": "Ann"}
    answer = client.post("/api/auth/signup", json=body)
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    token = answer.json()
    user = token["user"]
    assert str(UUID(user["id"])) == user["id"]
    assert token == {
        "access_token": token["access_token"],
        "token_type": "bearer",
        "expires_in": 7 * 86400,
        "user": {"id": user["id"], "email": email, "name": "Ann"},
    }
    claims = jwt.decode(token["access_token"], SECRET, ["HS256"])
    assert abs(claims["iat"] - time.time()) < 30
    assert claims == {
        "sub": user["id"], "email": email, "gen": 1,
        "iat": claims["iat"], "exp": claims["iat"] + 7 * 86400,
    }  # fmt: skip


def test_the_token_opens_the_tasks_of_its_user_and_of_nobody_else(
    client: httpx2.Client, ann: Person, bob: Person
) -> None:
    client.headers.update(ann.headers)
    task = create(client, "/api/tasks")
    assert task["user_id"] == ann.id
    assert client.get(f"/api/{ann.id}/tasks").json()[0]["id"] == task["id"]
    assert_problem(client.get(f"/api/{bob.id}/tasks"), 403)
    client.headers.update(bob.headers)
    assert client.get("/api/tasks").json() == []
    assert_problem(client.delete(f"/api/tasks/{task['id']}"), 404)


@pytest.mark.parametrize("path", ["", "?sort=-priority", "?status=pending", "/changes"])
def test_what_a_browser_has_kept_of_one_user_is_not_good_for_the_next(
    client: httpx2.Client, ann: Person, bob: Person, path: str
) -> None:
    """It keeps answers by their address, and may ask with the tag of whoever logged out."""
    kept = []
    for person in (ann, bob):
        client.headers.update(person.headers)
        create(client, "/api/tasks")  # so both are at the same position
        kept.append(client.get(f"/api/tasks{path}"))
    for whose, status in zip(kept, (200, 304), strict=True):
        headers = {"If-None-Match": whose.headers["ETag"]}
        assert client.get(f"/api/tasks{path}", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["login", "signin"])
@pytest.mark.parametrize("field", ["email", "username"])
def test_one_logs_in_with_an_email_or_a_username_that_is_one(
    client: httpx2.Client, ann: Person, path: str, field: str
) -> None:
    body = {field: ann.email, "password": PASSWORD, "rememberMe": True}
    answer = client.post(f"/api/auth/{path}", json=body)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["user"] == {"id": ann.id, "email": ann.email, "name": None}
    assert client.get("/api/tasks", headers=bearer(answer.json()["access_token"])).json() == []


def test_one_logs_in_with_the_form_of_oauth(
    client: httpx2.Client, database: Database, email: str
) -> None:
    password = "pä + ss&=%"
    sign_up(client, email, password)
    form = {"grant_type": "password", "username": email, "password": password, "scope": ""}
    call = client.get("/openapi.json").json()["paths"]["/api/auth/login"]["post"]
    told = call["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    needed = {name: form[name] for name in told["required"]}
    for sent in (form, needed):
        answer = client.post("/api/auth/login", data=sent)
        assert answer.status_code == 200
        assert answer.json()["user"]["email"] == email
    assert_problem(client.post("/api/auth/login", data=form | {"password": "x"}), 401)
    assert_problem(client.post("/api/auth/signup", data=form), 415)
    kind = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
    for broken, field in (
        (b"username=%ff", "password"), (b"a", "email"), (b"&&=&", "password"),
        (b"username=a%00&password=b", "username"), (b"username=a&password=%00", "password"),
        (b"username=a&password=" + b"x" * 1001, "password"), (b"a=&" * 80_000, "email"),
        (b"a&" * 100 + b"username=a&password=b", "email"), (b"user%name=a&password=b", "email"),
        (b"username[]=a&password=b", "email"), (b"username=a;password=b", "password"),
        (b"username=a&more=" + b"x" * 40_000 + b"&password=b", "password"),
        ("username=a&password=b".encode("utf-16"), "email"), (b"\xff\xfe", "email"),
    ):  # fmt: skip
        assert_refused(client.post("/api/auth/login", content=broken, headers=kind), field)
    for odd in (
        b"username=a&password=%ED%A0%80", b"username=a&password=\xff", b"username=%&password=%zz",
        b"username=a&password=%C0%80", b"username=a&username=" + email.encode() + b"&password=x",
        f"username={email}&password={password}".encode("latin-1"), b"username=a&password=+",
    ):  # fmt: skip
        assert_problem(client.post("/api/auth/login", content=odd, headers=kind), 401)
    quoted = urlencode({"password": password, "username": email}).encode()
    for good in (
        quoted,
        quoted.replace(b"@", b"%40"),
        b"&&" + quoted + b"&",
        b"password=x&" + quoted,
    ):
        let_pass(database, 4000)
        assert client.post("/api/auth/login", content=good, headers=kind).status_code == 200


def test_signing_up_ignores_what_it_does_not_know(client: httpx2.Client, email: str) -> None:
    body = {"email": email, "password": PASSWORD, "confirmPassword": 1, "username": "a", "id": "x"}
    answer = client.post("/api/auth/register", json=body)
    assert answer.status_code == 201
    assert answer.json()["user"]["id"] != "x"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann{}@example.com", "ANN{}@EXAMPLE.COM"),
        ("ann{}@example.com", "  ann{}@example.com "),
        ("jos\u00e9{}@example.com", "JOSE\u0301{}@example.com"),
        ("stra\u00dfe{}@example.com", "STRASSE{}@example.com"),
        ("ann{}@b\u00fccher.example.com", "ann{}@BU\u0308CHER.example.com"),
        ("ann{}@xn--bcher-kva.example.com", "ann{}@b\u00fccher.example.com"),
        ("ann{}@b\u00fccher.example.org", "Ann{}@XN--BCHER-KVA.example.org"),
        ("\uff41nn{}@example.com", "ann{}@example.com"),
        ("ann{}@ex\uff41mple.com", "ann{}@example.com"),
        ("\u212a{}@example.com", "k{}@example.com"),
        ("\ufb01sh{}@example.com", "FISH{}@example.com"),
        ("\u0130{}@example.com", "i\u0307{}@example.com"),
    ],
)
def test_an_email_is_the_same_in_any_case_and_unicode_form(
    client: httpx2.Client, one: str, other: str
) -> None:
    key = uuid4().hex
    one, other = one.format(key), other.format(key)
    person = sign_up(client, one)
    taken = client.post("/api/auth/signup", json={"email": other, "password": PASSWORD})
    assert_problem(taken, 409)
    assert taken.json()["errors"][0]["field"] == "email"
    for spelling in (one, other):
        assert log_in(client, spelling).json()["user"]["id"] == person.id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann{}@example.com", "\u0430nn{}@example.com"),  # Cyrillic
        ("ann{}@example.com", "ann+a{}@example.com"),
        ("a.nn{}@example.com", "ann{}@example.com"),
        ("jose{}@example.com", "jos\u00e9{}@example.com"),
        ("i{}@example.com", "\u0131{}@example.com"),
        ("ann{}@example.com", "ann{}@example.com.example.com"),
    ],
)
def test_emails_that_only_look_alike_are_two(client: httpx2.Client, one: str, other: str) -> None:
    key = uuid4().hex
    first, second = (sign_up(client, each.format(key)) for each in (one, other))
    assert first.id != second.id
    for person in (first, second):
        assert log_in(client, person.email).json()["user"]["id"] == person.id


def test_of_many_sign_ups_with_one_email_at_once_one_succeeds(
    client: httpx2.Client, email: str
) -> None:
    body = {"email": email, "password": PASSWORD}
    answers = at_once(20, lambda: client.post("/api/auth/signup", json=body))
    assert sorted(answer.status_code for answer in answers) == [201] + 19 * [409]


@pytest.mark.parametrize(
    "email",
    [
        "", "ann", "ann@", "@example.com", "a@b@example.com", "ann@example", "a b@example.com",
        "ann@example.com\0", "ann@exa\nmple.com", "ann@example..com", "ann@-.com",
        "a@" + "x" * 300 + ".com", "\ud800@example.com", "' OR 1=1 --", "ann@[127.0.0.1]",
        "Ann <ann@example.com>", "<ann@example.com>", '"Ann" <ann@example.com>', "ann@example.com>",
        7, None, True, ["ann@example.com"], {"$ne": ""},
    ],
)  # fmt: skip
def test_what_is_no_email_is_refused(client: httpx2.Client, email: Any) -> None:
    body = json.dumps({"email": email, "password": PASSWORD})
    json_type = {"Content-Type": "application/json"}
    answer = client.post("/api/auth/signup", content=body, headers=json_type)
    assert_refused(answer, "email")
    answer = client.post("/api/auth/login", content=body, headers=json_type)
    assert answer.status_code in (401, 422)


@pytest.mark.parametrize(
    "password",
    [
        "12345678", "x" * 128, "\U0001f9d1" * 128, "  blanks  ", "'\"; DROP--",
        "\u0300" * 128, "\u0958" * 128, "\U0001d15e" * 128, "\ufffe\uffff\U0010ffff" * 40,
        "\u202e\u200b\ufeff\x01\x7f\n\r\t", "\ufdfa" * 128, "\ue000" * 8, " " * 8,
    ],
)  # fmt: skip
def test_a_password_is_8_to_128_characters_of_any_kind_and_all_of_them_count(
    client: httpx2.Client, email: str, password: str
) -> None:
    sign_up(client, email, password)
    assert log_in(client, email, password).status_code == 200
    for other in (password[:-1], password + "x", password.strip() + "-", password.upper() + "!"):
        assert_problem(log_in(client, email, other), 401)
        assert log_in(client, email, password).status_code == 200


def test_passwords_of_128_characters_differ_by_the_last_one(
    client: httpx2.Client, email: str
) -> None:
    sign_up(client, email, "\U0001f9d1" * 127 + "a")
    assert_problem(log_in(client, email, "\U0001f9d1" * 127 + "b"), 401)


def test_characters_that_only_look_alike_are_others(client: httpx2.Client, email: str) -> None:
    sign_up(client, email, "\ufb01nd caf\u00e9 K1")
    for other in ("find caf\u00e9 K1", "\ufb01nd cafe K1", "\ufb01nd caf\u00e9 \u043a1"):
        assert_problem(log_in(client, email, other), 401)


def test_a_password_is_the_same_from_every_keyboard(client: httpx2.Client, email: str) -> None:
    sign_up(client, email, "cafe\u0301 noir")
    assert log_in(client, email, "caf\u00e9 noir").status_code == 200


@pytest.mark.parametrize(
    "password", ["", "1234567", "x" * 129, "with \0 in it", "with \ud800 in it", 12345678, None]
)
def test_other_passwords_are_refused(client: httpx2.Client, email: str, password: Any) -> None:
    body = json.dumps({"email": email, "password": password})
    answer = client.post(
        "/api/auth/signup", content=body, headers={"Content-Type": "application/json"}
    )
    assert_refused(answer, "password")


# ---- one's own account


def test_me_is_whom_the_token_is_for(client: httpx2.Client, ann: Person) -> None:
    answer = client.get("/api/auth/me", headers=ann.headers)
    assert answer.status_code == 200
    me = answer.json()
    assert me == {"id": ann.id, "email": ann.email, "name": None, "created_at": me["created_at"]}
    assert me["created_at"].endswith("Z")
    assert answer.headers["Cache-Control"] == "no-store"
    assert_problem(client.get("/api/auth/me"), 401)


def test_the_name_can_be_changed_without_a_password(client: httpx2.Client, ann: Person) -> None:
    for name in ("Ann", "\U0001f9d1 Ann", None):
        answer = client.patch("/api/auth/me", json={"name": name}, headers=ann.headers)
        assert answer.status_code == 200
        assert "access_token" not in answer.json()
        assert client.get("/api/auth/me", headers=ann.headers).json()["name"] == name
    assert client.patch("/api/auth/me", json={}, headers=ann.headers).json()["name"] is None
    for unknown in ("pasword", "email"):
        answer = client.patch("/api/auth/me", json={unknown: "x"}, headers=ann.headers)
        assert_refused(answer, unknown)


def test_a_wrong_password_is_told_whatever_changes(client: httpx2.Client, ann: Person) -> None:
    """A page with one form for all sends both: nobody shall take a wrong one for theirs."""
    for password, status in (("wrong", 403), (PASSWORD, 200), ("", 200), (None, 200)):
        body = {"name": f"after {password}", "current_password": password}
        answer = client.patch("/api/auth/me", json=body, headers=ann.headers)
        assert answer.status_code == status
        assert "access_token" not in answer.json()
        name = client.get("/api/auth/me", headers=ann.headers).json()["name"]
        assert (name == body["name"]) == (status == 200)


def test_a_new_password_needs_the_old_one_and_ends_every_token_made_before(
    client: httpx2.Client, ann: Person
) -> None:
    other_session = log_in(client, ann.email).json()["access_token"]
    for wrong in ({}, {"current_password": None}, {"current_password": "wrong"}):
        body = {"password": "another one", **wrong}
        assert_problem(client.patch("/api/auth/me", json=body, headers=ann.headers), 403)
    body = {"password": "another one", "current_password": PASSWORD}
    answer = client.patch("/api/auth/me", json=body, headers=ann.headers)
    assert answer.status_code == 200
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(answer.json()) == set(schemas["Me"]["properties"])
    for ended in (ann.token, other_session):
        assert_problem(client.get("/api/tasks", headers=bearer(ended)), 401)
        assert_problem(client.get("/api/auth/me", headers=bearer(ended)), 401)
    assert_problem(log_in(client, ann.email), 401)
    for token in (answer.json(), log_in(client, ann.email, "another one").json()):
        assert client.get("/api/tasks", headers=bearer(token["access_token"])).json() == []


def test_of_many_new_passwords_at_once_one_is_set(client: httpx2.Client, ann: Person) -> None:
    def change() -> httpx2.Response:
        body = {"password": uuid4().hex, "current_password": PASSWORD}
        return client.patch("/api/auth/me", json=body, headers=ann.headers)

    answers = at_once(10, change)
    assert sum(answer.status_code == 200 for answer in answers) == 1
    assert {answer.status_code for answer in answers} <= {200, 401, 403, 429}


def test_a_name_that_is_changed_while_a_new_password_is_made_stays(database: Database) -> None:
    # The hash of the password takes its time, so that names come in between.
    with (
        with_accounts(database, app="main:app") as service,
        client_of(service) as client,
        ThreadPoolExecutor() as threads,
    ):
        client.timeout = httpx2.Timeout(30)
        for _ in range(3):
            ann = sign_up(client, f"{uuid4().hex}@example.com")
            body = {"password": "another one", "current_password": PASSWORD}
            changing = threads.submit(client.patch, "/api/auth/me", json=body, headers=ann.headers)
            names: list[str | None] = [None]
            while not changing.done():
                change = {"name": uuid4().hex}
                if client.patch("/api/auth/me", json=change, headers=ann.headers).is_success:
                    names.append(change["name"])
                time.sleep(0.02)  # or the hash, which comes after everybody's calls, takes long
            assert names[1:]
            headers = bearer(changing.result().json()["access_token"])
            assert client.get("/api/auth/me", headers=headers).json()["name"] == names[-1]


def test_deleting_the_account_deletes_its_tasks_and_no_others(
    client: httpx2.Client, database: Database, ann: Person, bob: Person
) -> None:
    for person in (ann, bob):
        client.post("/api/tasks", json={"title": "task"}, headers=person.headers)
    for wrong in ({}, {"password": None}, {"password": "wrong"}):
        assert_problem(delete_me(client, ann, **wrong), 403)
    assert_problem(client.delete("/api/auth/me", headers=ann.headers), 403)
    assert delete_me(client, ann, password=PASSWORD).status_code == 200
    for path in ("/api/tasks", "/api/auth/me", f"/api/{ann.id}/tasks"):
        assert_problem(client.get(path, headers=ann.headers), 401)
    left = rows(database, f"SELECT user_id FROM task WHERE user_id IN ('{ann.id}', '{bob.id}')")
    assert left == [(bob.id,)]
    assert_problem(log_in(client, ann.email), 401)
    assert sign_up(client, ann.email).id != ann.id


def test_an_account_that_is_written_to_is_deleted_without_a_deadlock(
    postgres: Server, email: str
) -> None:
    """Writers lock the position, then tasks; so does who deletes the account."""
    database = Database("postgresql", postgres.create_database(), postgres.version)
    with with_accounts(database) as service, client_of(service) as client:
        client.timeout = httpx2.Timeout(20)
        ann = sign_up(client, email)
        client.post("/api/tasks", json={"title": "task"}, headers=ann.headers)
        with ThreadPoolExecutor() as threads, closing(psycopg2.connect(database.url)) as writer:
            with writer, writer.cursor() as cursor:
                cursor.execute("UPDATE task_feed SET position = position + 1")
                deleting = threads.submit(delete_me, client, ann, password=PASSWORD)
                time.sleep(5)  # more than its hash takes, and than an ordinary call may
                cursor.execute("UPDATE task SET position = position + 1")
            assert deleting.result().status_code == 200
        assert rows(database, "SELECT user_id FROM task UNION SELECT user_id FROM task_gone") == []


# ---- tokens


def test_a_token_counts_only_for_an_account_and_its_generation(
    client: httpx2.Client, ann: Person
) -> None:
    key = Key("HS256", private=SECRET.encode())
    good = jwt.decode(ann.token, SECRET, ["HS256"])
    assert client.get("/api/tasks", headers=bearer(key.token(good))).status_code == 200
    changed: tuple[dict[str, Any], ...] = (
        {"sub": str(uuid4())}, {"sub": "demo"}, {"sub": ann.email}, {"sub": ann.id.upper()},
        *({"gen": wrong} for wrong in (0, 2, -1, None, "1", True, 1.0, [1], 2**31, 2**80)),
        {"exp": good["iat"] - 60},
    )  # fmt: skip
    for changes in changed:
        forged = key.token(good | changes)
        assert_problem(client.get("/api/tasks", headers=bearer(forged)), 401)
    del good["gen"]
    assert_problem(client.get("/api/tasks", headers=bearer(key.token(good))), 401)


def test_a_token_that_is_not_signed_is_refused(client: httpx2.Client, ann: Person) -> None:
    claims = jwt.decode(ann.token, SECRET, ["HS256"])
    head, body, signature = ann.token.split(".")
    none = base64url(to_bytes({"alg": "none", "typ": "JWT"}))
    for token in (
        f"{none}.{body}.", f"{none}.{body}.{signature}", f"{head}.{body}.",
        Key("HS256", private=b"another secret of 32 bytes or so").token(claims),
    ):  # fmt: skip
        for path in ("/api/auth/me", "/api/tasks"):
            assert_problem(client.get(path, headers=bearer(token)), 401)


def test_issuer_audience_and_days_are_those_of_the_settings(
    new_database: Database, email: str
) -> None:
    settings = {"AUTH_ISSUER": "https://tasks.example", "AUTH_AUDIENCE": "tasks"}
    with (
        with_accounts(new_database, AUTH_TOKEN_DAYS="1", **settings) as service,
        client_of(service) as client,
    ):
        token = log_in(client, sign_up(client, email).email).json()
        assert token["expires_in"] == 86400
        assert client.get("/api/tasks", headers=bearer(token["access_token"])).status_code == 200


def test_other_copies_of_the_service_learn_of_a_new_password_and_of_a_deletion(
    database: Database, email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auth.accounts._KNOWN_FOR", 0.5)
    settings = {"database_url": database.url, "auth_secret": SECRET, "auth_accounts": True}
    with in_process(**settings) as one, in_process(**settings) as other:
        for copy in (one, other):
            copy.headers.update(CORS)
        ann = sign_up(one, email)
        assert other.get("/api/tasks", headers=ann.headers).status_code == 200
        body = {"password": "another one", "current_password": PASSWORD}
        new = one.patch("/api/auth/me", json=body, headers=ann.headers).json()
        assert other.get("/api/tasks", headers=bearer(new["access_token"])).status_code == 200
        assert_problem(other.get("/api/tasks", headers=ann.headers), 401)
        ann = Person(email, ann.id, new["access_token"])
        assert delete_me(one, ann, password="another one").status_code == 200
        assert_problem(one.get("/api/tasks", headers=ann.headers), 401)
        time.sleep(0.6)
        assert_problem(other.get("/api/tasks", headers=ann.headers), 401)


def test_nothing_is_written_for_a_deleted_account_by_copies_that_have_not_heard_of_it(
    new_database: Database, email: str
) -> None:
    settings = {"database_url": new_database.url, "auth_secret": SECRET, "auth_accounts": True}
    with in_process(**settings) as one, in_process(**settings) as other:
        for copy in (one, other):
            copy.headers.update(CORS)
        # Who has never had a task, who has some, and somebody who stays.
        new, ann, bob = (sign_up(one, f"{who}-{email}") for who in ("new", "ann", "bob"))
        for person in (ann, bob):
            made = other.post("/api/tasks", json={"title": "x"}, headers=person.headers).json()
        assert other.get("/api/tasks", headers=new.headers).json() == []
        for person in (new, ann):
            assert delete_me(one, person, password=PASSWORD).status_code == 200
        daily = {"title": "x", "recurrence": "FREQ=DAILY", "due_date": "2030-01-01"}
        key = {"Idempotency-Key": "key"}
        for person in (new, ann):
            assert other.get("/api/tasks", headers=person.headers).json() == []
            for method, path, body, headers in (
                ("POST", "", {"title": "x"}, {}), ("POST", "", {"title": "x"}, key),
                ("POST", "", {"title": "x", "uid": "x"}, {}), ("POST", "", daily, {}),
                ("POST", "", [{"title": "x"}, {"title": "y"}], {}),
                ("PATCH", f"/{made['id']}/complete", None, {}),
                ("PUT", f"/{made['id']}", {"title": "y"}, {}),
                ("DELETE", f"/{made['id']}?forever=true", None, {}),
                ("PATCH", "", {"title": "y"}, {}), ("DELETE", "?deleted=true", None, {}),
            ):  # fmt: skip
                headers = person.headers | headers
                answer = other.request(method, f"/api/tasks{path}", json=body, headers=headers)
                assert_problem(answer, 401)
        # Theirs among somebody else's, which share a statement or a transaction.
        mixed = iter([ann, bob, new, bob] * 10)

        def write() -> httpx2.Response:
            return other.post("/api/tasks", json={"title": "x"}, headers=next(mixed).headers)

        answers = at_once(40, write)
        assert sorted(answer.status_code for answer in answers) == 20 * [201] + 20 * [401]
        for table in ("task", "task_gone"):
            assert set(rows(new_database, f"SELECT user_id FROM {table}")) <= {(bob.id,)}
        last = 2**53 - 1
        ended = rows(new_database, f"SELECT user_id FROM task_feed WHERE position = {last}")
        assert sorted(ended) == sorted([(new.id,), (ann.id,)])


# ---- guessing


def test_an_unknown_email_and_a_wrong_password_get_the_same_answer(
    client: httpx2.Client, ann: Person
) -> None:
    id_ = {"X-Request-ID": "same"}
    answers = [
        client.post("/api/auth/login", json={"email": email, "password": "wrong"}, headers=id_)
        for email in (ann.email, f"{uuid4().hex}@example.com", "no e-mail", "' OR ''='")
    ]
    assert_problem(answers[0], 401)
    assert len({answer.text for answer in answers}) == 1
    assert len({tuple(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1


@pytest.mark.parametrize("known", [True, False])
def test_after_five_failures_in_a_row_each_further_try_waits(
    client: httpx2.Client, database: Database, email: str, known: bool
) -> None:
    if known:
        sign_up(client, email)
    assert statuses(client, email, 5) == 5 * [401]
    for wait in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900):
        for password in (PASSWORD, "wrong"):
            refused = log_in(client, email, password)
            assert_problem(refused, 429)
            assert wait - 1 <= int(refused.headers["Retry-After"]) <= wait
        let_pass(database, wait)
        assert_problem(log_in(client, email, "wrong"), 401)
    let_pass(database, 900)
    if known:
        assert log_in(client, email).status_code == 200
        assert statuses(client, email, 5) == 5 * [401]


def test_case_and_form_of_an_email_get_no_further_tries(client: httpx2.Client, email: str) -> None:
    spellings = [email, email.upper(), f" {email}", email.title(), email.swapcase()]
    for spelling in spellings:
        assert_problem(log_in(client, spelling, "wrong"), 401)
    assert_problem(log_in(client, email.capitalize(), "wrong"), 429)


def test_others_do_not_wait_for_the_failures_of_one_address(
    client: httpx2.Client, ann: Person, bob: Person
) -> None:
    assert statuses(client, ann.email, 6) == [*5 * [401], 429]
    assert log_in(client, ann.email, address="192.0.2.2").status_code == 200
    assert log_in(client, bob.email).status_code == 200
    assert_problem(log_in(client, ann.email), 429)


def test_addresses_of_one_ipv6_network_count_as_one(client: httpx2.Client, email: str) -> None:
    for host in range(5):
        address = f"2001:db8:0:1::{host:x}"
        assert_problem(log_in(client, email, "wrong", address=address), 401)
    assert_problem(log_in(client, email, "wrong", address="2001:db8:0:1:ffff::1"), 429)
    assert_problem(log_in(client, email, "wrong", address="2001:db8:0:2::1"), 401)
    for mapped in range(6):
        address = f"::ffff:192.0.2.{mapped}"
        assert_problem(log_in(client, email, "wrong", address=address), 401)
    for spelling in ("203.0.113.1", "::ffff:203.0.113.1", "::FFFF:cb00:7101", "0::ffff:cb00:7101"):
        assert_problem(log_in(client, email, "wrong", address=spelling), 401)
    assert_problem(log_in(client, email, "wrong", address="[::ffff:203.0.113.1]:443"), 401)
    assert_problem(log_in(client, email, "wrong", address="203.0.113.1:443"), 429)


def test_after_a_hundred_failures_from_anywhere_everybody_waits(
    client: httpx2.Client, database: Database, ann: Person
) -> None:
    for network in range(25):
        assert statuses(client, ann.email, 4, address=f"192.0.2.{network}") == 4 * [401]
    refused = log_in(client, ann.email, address="203.0.113.1")
    assert_problem(refused, 429)
    assert refused.headers["Retry-After"] == "1"
    let_pass(database, 1)
    assert log_in(client, ann.email, address="203.0.113.1").status_code == 200


def test_nobody_locks_somebody_out_alone(
    client: httpx2.Client, database: Database, ann: Person
) -> None:
    for _ in range(110):
        let_pass(database, 900)
        assert_problem(log_in(client, ann.email, "wrong"), 401)
    assert log_in(client, ann.email, address="203.0.113.1").status_code == 200


def test_a_clock_that_is_set_back_keeps_nobody_out_for_longer(
    client: httpx2.Client, database: Database, ann: Person
) -> None:
    assert statuses(client, ann.email, 7) == [*5 * [401], 429, 429]
    let_pass(database, -100_000)
    refused = log_in(client, ann.email)
    assert_problem(refused, 429)
    assert refused.headers["Retry-After"] == "1"
    let_pass(database, 1)
    assert log_in(client, ann.email).status_code == 200
    let_pass(database, 100_000)  # for those of the other tests


def test_a_server_that_gives_back_15_digits_of_a_number_lets_people_in(
    own_postgres: Postgres, email: str
) -> None:
    url = own_postgres.create_database()
    name = urlsplit(url).path[1:]
    own_postgres.execute(f"ALTER DATABASE {name} SET extra_float_digits = 0")
    with with_accounts(Database("postgresql", url, "")) as service, client_of(service) as client:
        sign_up(client, email)
        assert statuses(client, email, 2) == 2 * [401]
        assert log_in(client, email).status_code == 200


def test_tries_at_once_get_no_further_than_tries_in_a_row(
    client: httpx2.Client, ann: Person
) -> None:
    answers = at_once(50, lambda: log_in(client, ann.email, "wrong"))
    assert sorted(answer.status_code for answer in answers) == 5 * [401] + 45 * [429]


def test_many_log_ins_at_once_with_the_right_password_all_succeed(
    client: httpx2.Client, ann: Person
) -> None:
    answers = at_once(50, lambda: log_in(client, ann.email))
    assert {answer.status_code for answer in answers} == {200}


def test_a_log_in_that_ends_the_failures_while_a_try_is_counted_ends_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tries = Store.run, []

    async def after_a_log_in_elsewhere(store: Store, query: Query) -> Any:
        if query.statement is accounts._count:
            tries.append(query)
            if len(tries) == 4:
                rows(database, "DELETE FROM task_failed_login")  # as a right password does
        return await run(store, query)

    monkeypatch.setattr(Store, "run", after_a_log_in_elsewhere)
    with in_process(
        database_url=database.url, auth_accounts=True, auth_secret=SECRET, log_level="error"
    ) as client:
        body = {"email": f"{uuid4().hex}@example.com", "password": "wrong"}
        answers = [client.post("/api/auth/login", json=body).status_code for _ in range(8)]
    assert answers == 8 * [401]  # not 429 from the sixth on


def test_guesses_at_me_count_too(client: httpx2.Client, ann: Person, bob: Person) -> None:
    for guess in range(5):
        call = ("PATCH", {"password": "another one", "current_password": "wrong"})
        method, body = call if guess % 2 else ("DELETE", {"password": "wrong"})
        answer = client.request(method, "/api/auth/me", json=body, headers=ann.headers)
        assert_problem(answer, 403)
    assert_problem(delete_me(client, ann, password=PASSWORD), 429)
    assert delete_me(client, bob, password=PASSWORD).status_code == 200
    assert client.get("/api/tasks", headers=ann.headers).status_code == 200


def test_failures_are_kept_for_an_hour_and_do_not_say_whose_they_are(
    client: httpx2.Client, database: Database, email: str
) -> None:
    let_pass(database, 4000)
    assert_problem(log_in(client, email, "wrong"), 401)
    (row,) = rows(database, "SELECT email, address, failures FROM task_failed_login")
    assert row[2] == 1
    assert email not in row[0]
    assert "192.0.2.1" not in row[1]


def test_the_table_of_failures_has_one_row_for_many_of_one_and_none_for_what_succeeded(
    client: httpx2.Client, database: Database, ann: Person
) -> None:
    let_pass(database, 4000)
    for _ in range(20):
        log_in(client, ann.email, "wrong")
        log_in(client, ann.email.upper(), "wrong", address="192.0.2.2")
        log_in(client, ann.email, address="192.0.2.3")
    at_once(50, lambda: log_in(client, ann.email, "wrong"))
    let_pass(database, 900)
    assert_problem(log_in(client, ann.email, "wrong"), 401)
    ((kept, most),) = rows(database, "SELECT count(*), max(failures) FROM task_failed_login")
    assert kept == 2
    assert 6 <= most < 10  # on a slow machine a second has passed before one of them
    let_pass(database, 3601)
    assert log_in(client, ann.email).status_code == 200
    assert rows(database, "SELECT count(*) FROM task_failed_login") == [(0,)]


def test_accounts_and_failures_hold_over_four_workers_and_a_restart(
    new_database: Database, email: str
) -> None:
    spellings = ("jos\u00e9@example.com", "JOSE\u0301@Example.COM", " Jos\u00e9@example.com")
    with with_accounts(new_database, workers=4) as service, ThreadPoolExecutor(50) as threads:
        clients = [client_of(service) for _ in range(50)]

        def call(place: int) -> httpx2.Response:
            body = {"email": spellings[place % 3], "password": f"{PASSWORD} {place}"}
            return clients[place].post("/api/auth/signup", json=body)

        # Of many sign-ups in many spellings one succeeds.
        answers = list(threads.map(call, range(24)))
        assert sorted(answer.status_code for answer in answers) == [201] + 23 * [409]
        (made,) = (place for place, answer in enumerate(answers) if answer.status_code == 201)
        right = log_in(clients[0], "jos\u00e9@example.com", f"{PASSWORD} {made}")
        assert right.json()["user"] == answers[made].json()["user"]
        assert rows(new_database, "SELECT count(*) FROM task_account") == [(1,)]

        ann = sign_up(clients[0], email)
        read = threads.map(lambda each: each.get("/api/tasks", headers=ann.headers), clients)
        assert {answer.status_code for answer in read} == {200}
        tried = threads.map(lambda each: log_in(each, email, "wrong"), clients)
        assert sorted(answer.status_code for answer in tried) == 5 * [401] + 45 * [429]
    let_pass(new_database, -60)  # as if the clock stood still
    with with_accounts(new_database) as service, client_of(service) as client:
        assert client.get("/api/auth/me", headers=ann.headers).json()["email"] == email
        assert_problem(log_in(client, email), 429)


# ---- what else is sent


def test_broken_bodies_are_problems(client: httpx2.Client, ann: Person) -> None:
    for method, path in (
        ("POST", "signup"), ("POST", "login"), ("PATCH", "me"), ("DELETE", "me"),
    ):  # fmt: skip
        for body, kind, expected in (
            (b"{", "application/json", {400}),
            (b'{"email": "\xff"}', "application/json", {400}),
            (b"[" * 100_000, "application/json", {400, 422}),
            (b"[]", "application/json", {422}),
            (b'"text"', "application/json", {422}),
            (b'{"password": {}}', "application/json", {422}),
            (b'{"password": "' + b"x" * 1001 + b'"}', "application/json", {422}),
            (b"{}", "text/plain", {415}),
            (b"<a/>", "application/xml", {415}),
            (b" " * (256 * 1024 + 1), "application/json", {413}),
        ):
            headers = {**ann.headers, "Content-Type": kind}
            answer = client.request(method, f"/api/auth/{path}", content=body, headers=headers)
            assert answer.status_code in expected, (method, path, body[:30], answer.text)
            assert_problem(answer, answer.status_code)
    for path in ("signup", "login", "register", "signin"):
        answer = client.get(f"/api/auth/{path}")
        assert_problem(answer, 405)
        assert answer.headers["Allow"] == "OPTIONS, POST"


def test_the_log_has_no_email_password_or_token(
    client: httpx2.Client, service: Service, ann: Person
) -> None:
    password = "a secret of Ann's"
    body = {"password": password, "current_password": PASSWORD}
    assert client.patch("/api/auth/me", json=body, headers=ann.headers).status_code == 200
    log_in(client, ann.email, password)
    log_in(client, ann.email, "wrong")
    time.sleep(0.2)
    for secret in (ann.email, password, PASSWORD, ann.token):
        assert secret not in service.log
    assert "Traceback" not in service.log


# ---- the switch


def test_without_the_switch_there_is_nothing_and_nothing_of_it_is_loaded() -> None:
    script = """
import sys
from main import create_app
from settings import Settings
from starlette.testclient import TestClient
client = TestClient(create_app(Settings(_env_file=None, auth_secret="s" * 32)))
for path in ("signup", "register", "login", "signin", "me"):
    for method in ("GET", "POST", "PATCH", "DELETE"):
        answer = client.request(method, f"/api/auth/{path}")
        assert answer.status_code == 404
        assert "with AUTH_ACCOUNTS on, log-in is at /api/auth/login" in answer.json()["detail"]
assert "/api/auth" not in client.get("/openapi.json").text
# email_validator is there all the same: FastAPI loads it wherever it is installed.
print(*({"argon2", "dns", "auth.accounts", "routes.accounts"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"AUTH_ACCOUNTS": "true"},
        {"AUTH_ACCOUNTS": "true", "AUTH_JWKS_URL": "https://issuer.example/jwks"},
        {"AUTH_TOKEN_DAYS": "0"},
        {"AUTH_TOKEN_DAYS": "366"},
    ],
)
def test_settings_that_cannot_be_stop_the_start_with_one_line(settings: dict[str, str]) -> None:
    script = "from settings import load_settings; load_settings()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=settings,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert next(iter(settings)) in line
