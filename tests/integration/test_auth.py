"""Auth by one switch: whom a token lets in, what is refused, and where keys come from."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.processes import wait_until
from tests.support.service import Service
from tests.support.tokens import AUDIENCE, ISSUER, JwksServer, Key, base64url, claims, to_bytes

SECRET = Key("HS256", private=b"a secret of no less than 32 bytes")
EDDSA, ES256, RS256 = Key("EdDSA", "one name"), Key("ES256", "one name"), Key("RS256", "rsa")
OTHER_RSA, P384 = Key("RS256", "other rsa"), Key("ES384", "p-384")
FOR_OTHER_USE, FOR_OTHER_ALGORITHM = Key("EdDSA", "enc"), Key("RS256", "ps")
WEAK = Key("RS256", "weak", rsa.generate_private_key(65537, 1024))
SYMMETRIC = Key("HS256", "symmetric", b"published with the other keys, in error")
PUBLISHED = [Key("RS256", "published rsa"), Key("ES256", "published ec")]  # with their private half
FOREIGN = Key("EdDSA", "foreign")
RUBBISH: list[Any] = [
    None, "key", 7, [], {}, {"kty": None}, {"kty": ["RSA"]}, {"kty": "RSA", "kid": "no numbers"},
    {"kty": "EC", "crv": "P-256", "x": "!", "y": 5}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
    {"kty": "OKP", "crv": ["Ed25519"]}, EDDSA.jwk | {"kid": ["one name"]}, EDDSA.jwk | {"kid": 1},
    {"kty": "oct", "kid": SYMMETRIC.kid, "k": base64url(SYMMETRIC.private)},
    EDDSA.jwk | {"alg": "none"}, WEAK, P384, FOR_OTHER_USE.jwk | {"use": "enc"},
    FOR_OTHER_ALGORITHM.jwk | {"alg": "PS256"},
    *(key.private_jwk for key in PUBLISHED),
]  # fmt: skip
GOOD: list[Any] = [
    EDDSA.jwk | {"alg": "EdDSA", "use": "sig", "x5u": "https://nobody.invalid", "later": {}},
    ES256.jwk | {"use": None, "alg": None},
    RS256.jwk | {"crv": "Ed25519"},  # Better Auth says so of RSA keys beside the default ones
    OTHER_RSA,
]

CHALLENGE = 'Bearer realm="tasks"'
OTHER_AUDIENCE = "https://also.example"
CHECKS = {
    "AUTH_ISSUER": ISSUER,
    "AUTH_AUDIENCE": f"{OTHER_AUDIENCE}, {AUDIENCE}",
    "LOG_LEVEL": "debug",
}


@dataclass
class Guarded:
    """The live service with one of the switches on, and the key that is right for it."""

    service: Service
    client: httpx2.Client
    key: Key

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.client.get(path, headers=headers)

    def status(self, token: str, path: str = "/api/tasks") -> int:
        return self.get(path, token).status_code


@contextmanager
def guarded(key: Key, **settings: Any) -> Iterator[Guarded]:
    """Start the service with auth on and a database of its own."""
    with (
        TemporaryDirectory() as directory,
        Service(DATABASE_URL=f"sqlite:///{directory}/tasks.db", **settings) as service,
        httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client,
    ):
        yield Guarded(service, client, key)


@pytest.fixture(scope="module")
def secret() -> Iterator[Guarded]:
    """The service with AUTH_SECRET."""
    with guarded(SECRET, AUTH_SECRET=SECRET.private.decode(), **CHECKS) as guard:
        yield guard


@pytest.fixture(scope="module")
def public() -> Iterator[Guarded]:
    """The service with AUTH_JWKS_URL."""
    with (
        JwksServer(*RUBBISH, *GOOD) as server,
        guarded(EDDSA, AUTH_JWKS_URL=server.url, **CHECKS) as guard,
    ):
        yield guard


@pytest.fixture(scope="module")
def trap() -> Iterator[JwksServer]:
    """A key set of the attacker's, where nobody must ever ask."""
    with JwksServer(FOREIGN) as trap:
        yield trap


@pytest.fixture(params=["secret", "public"])
def guard(request: pytest.FixtureRequest) -> Guarded:
    """The service with the one switch, then with the other."""
    guarded: Guarded = request.getfixturevalue(request.param)
    return guarded


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def assert_unauthorized(answer: httpx2.Response) -> None:
    """Check for the one 401 that every bad token gets, which says nothing about the reason."""
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"] == CHALLENGE
    assert answer.headers["Content-Type"] == "application/problem+json"
    detail = "A valid bearer token is required."
    assert answer.json() == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": detail,
        "message": detail,
        "errors": [],
        "request_id": answer.headers["X-Request-ID"],
    }


# --- whom a token lets in -------------------------------------------------------------------------


def operations(mount: str, task: object) -> list[tuple[str, str, Any]]:
    return [
        ("GET", mount, None),
        ("HEAD", mount, None),
        ("POST", mount, {"title": "new"}),
        ("PATCH", mount, {"completed": True}),
        ("DELETE", f"{mount}?status=completed", None),
        ("GET", f"{mount}/stats", None),
        ("GET", f"{mount}/{task}", None),
        ("PUT", f"{mount}/{task}", {"title": "changed"}),
        ("PATCH", f"{mount}/{task}", {"title": "changed"}),
        ("PATCH", f"{mount}/{task}/complete", None),
        ("DELETE", f"{mount}/{task}", None),
    ]


def test_a_token_opens_the_tasks_of_its_sub_on_both_mounts(guard: Guarded, user: str) -> None:
    headers = bearer(guard.key.token(claims(user)))
    mine = f"/api/{user}/tasks"
    task = guard.client.post("/api/tasks", json={"title": "mine"}, headers=headers).json()
    assert task["user_id"] == user
    assert guard.client.get(f"{mine}/{task['id']}", headers=headers).json()["title"] == "mine"
    for mount in ("/api/tasks", "/api/tasks/", mine):
        assert len(guard.client.get(mount, headers=headers).json()) == 1
    for method, path, body in itertools.chain(*(operations(m, 0) for m in ("/api/tasks", mine))):
        answer = guard.client.request(method, path, json=body, headers=headers)
        assert answer.status_code in (200, 201, 404, 422), f"{method} {path}: {answer.text}"


def test_a_token_opens_nothing_of_anybody_else(guard: Guarded, user: str) -> None:
    theirs = bearer(guard.key.token(claims(f"other-{user}")))
    mine = bearer(guard.key.token(claims(user)))
    task = guard.client.post("/api/tasks", json={"title": "mine"}, headers=mine).json()
    for method, path, body in operations(f"/api/{user}/tasks", task["id"]):
        answer = guard.client.request(method, path, json=body, headers=theirs)
        assert answer.status_code == 403, f"{method} {path}: {answer.text}"
        if method != "HEAD":
            assert answer.json()["detail"] == "The token is for another user."
    for method, path, body in operations("/api/tasks", task["id"])[6:]:
        answer = guard.client.request(method, path, json=body, headers=theirs)
        assert answer.status_code == 404, f"{method} {path}: {answer.text}"
    assert guard.client.get("/api/tasks", headers=theirs).json() == []
    assert guard.client.get("/api/tasks", headers=mine).json() == [task]


def test_no_operation_works_without_a_token(guard: Guarded, user: str) -> None:
    for method, path, body in itertools.chain(
        *(operations(mount, 1) for mount in ("/api/tasks", f"/api/{user}/tasks", "/api/demo/tasks"))
    ):
        answer = guard.client.request(method, path, json=body)
        assert answer.status_code == 401, f"{method} {path}: {answer.text}"
        assert answer.headers["WWW-Authenticate"] == CHALLENGE


@pytest.mark.parametrize(
    "sub",
    ["auth0|5f7c8ec7", "émile@例え.example", "a b", "100%", "x" * 128, "..name", "\U0001f600"],
)
def test_any_user_id_can_be_the_sub(guard: Guarded, sub: str) -> None:
    token = guard.key.token(claims(sub))
    task = guard.client.post("/api/tasks", json={"title": "mine"}, headers=bearer(token)).json()
    assert task["user_id"] == sub
    assert guard.status(token, f"/api/{quote(sub, safe='')}/tasks") == 200


ACCEPTED: dict[str, Callable[[float], dict[str, Any]]] = {
    "a clock that is behind ours": lambda now: {"exp": int(now) - 20},
    "a clock that is ahead of ours": lambda now: {"nbf": int(now) + 20, "iat": int(now) + 20},
    "fractions of a second": lambda now: {"exp": now + 60.5, "iat": now - 0.5},
    "several audiences": lambda _: {"aud": ["https://other.example", AUDIENCE]},
    "the other audience": lambda _: {"aud": OTHER_AUDIENCE},
    "much else": lambda _: {"name": "Zoë \U0001f600", "roles": [{"a": None}], "text": "x" * 4000},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_token_is_accepted(guard: Guarded, user: str, name: str) -> None:
    token = guard.key.token(claims(user, **ACCEPTED[name](time.time())))
    assert guard.status(token) == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_is_bearer_in_any_case_and_before_any_blanks(
    guard: Guarded, user: str, scheme: str
) -> None:
    header = f"{scheme} {guard.key.token(claims(user))}"
    assert guard.get("/api/tasks", Authorization=header).status_code == 200


@pytest.mark.parametrize("blanks", [" ", "\t", "  "])
def test_blanks_after_a_token_are_none_of_it(guard: Guarded, user: str, blanks: str) -> None:
    """RFC 9110 section 5.5; httpx2 sends none."""
    header = f"Bearer {guard.key.token(claims(user))}{blanks}"
    request = Request(f"{guard.service.url}/api/tasks", headers={"Authorization": header})
    with urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_token_ends_while_it_is_in_use(secret: Guarded, user: str) -> None:
    token = secret.key.token(claims(user, exp=int(time.time()) - 27))
    assert secret.status(token) == 200
    wait_until(lambda: secret.status(token) == 401, "the token expires", 20)


# --- what is refused ------------------------------------------------------------------------------

Bad = Callable[[Key, str], str | bytes]  # from the right key and a user to what is not right
NOW = int(time.time())


def with_claims(**changes: Any) -> Bad:
    return lambda key, user: key.token(claims(user, **changes))


def with_header(**changes: Any) -> Bad:
    return lambda key, user: key.token(claims(user), **changes)


def impostor(key: Key) -> Key:
    """A key of the same kind and name, but not the right one."""
    return Key(key.algorithm, key.kid, b"another secret" * 3 if key is SECRET else None)


def unsigned(algorithm: str, signature: str = "") -> Bad:
    return lambda key, user: (
        key.sign({"alg": algorithm, "kid": key.kid or ""}, claims(user)).rpartition(".")[0]
        + f".{signature}"
    )


def tampered(key: Key, user: str) -> str:
    header, _, signature = key.token(claims("somebody-else")).split(".")
    return f"{header}.{base64url(to_bytes(claims(user)))}.{signature}"


BAD_TOKENS: dict[str, Bad] = {
    "expired": with_claims(exp=NOW - 60),
    "expired for long": with_claims(exp=0),
    "expired before the epoch": with_claims(exp=-1e300),
    "not yet valid": with_claims(nbf=NOW + 3000),
    "issued in the future": with_claims(iat=NOW + 3000),
    "no exp": with_claims(exp=...),
    "exp null": with_claims(exp=None),
    "exp a word": with_claims(exp="tomorrow"),
    "exp a list": with_claims(exp=[NOW + 3000]),
    "exp infinite": with_claims(exp=float("inf")),
    "exp not a number": with_claims(exp=float("nan")),
    "nbf a word": with_claims(nbf="now"),
    "no sub": with_claims(sub=...),
    "sub null": with_claims(sub=None),
    "sub a number": with_claims(sub=1),
    "sub a list": lambda key, user: key.token(claims(user, sub=[user])),
    "sub empty": with_claims(sub=""),
    "sub with a slash": with_claims(sub="a/b"),
    "sub with a control": with_claims(sub="a\0b"),
    "sub with a surrogate": with_claims(sub="a\ud800b"),
    "sub too long": with_claims(sub="x" * 129),
    "sub that is no user": with_claims(sub="tasks"),
    "wrong issuer": with_claims(iss="https://attacker.example"),
    "issuer with more": with_claims(iss=f"{ISSUER}.attacker.example"),
    "issuers": with_claims(iss=[ISSUER]),
    "no issuer": with_claims(iss=...),
    "wrong audience": with_claims(aud="https://other.example"),
    "audience with more": with_claims(aud=f"{AUDIENCE}/more"),
    "audience an object": with_claims(aud={AUDIENCE: 1}),
    "all audiences in one": with_claims(aud=f"{OTHER_AUDIENCE}, {AUDIENCE}"),
    "no audience": with_claims(aud=...),
    "no audiences": with_claims(aud=[]),
    "wrong signature": lambda key, user: impostor(key).token(claims(user)),
    "tampered claims": tampered,
    "cut signature": lambda key, user: key.token(claims(user))[:-4],
    "no signature": lambda key, user: key.token(claims(user)).rpartition(".")[0] + ".",
    "two parts": lambda key, user: key.token(claims(user)).rpartition(".")[0],
    "four parts": lambda key, user: key.token(claims(user)) + ".AAAA",
    "five parts": lambda *_: "e30.e30.e30.e30.e30",
    "alg none": unsigned("none"),
    "alg None with a signature": unsigned("None", "AAAA"),
    "alg empty": unsigned(""),
    "no alg": lambda key, user: key.sign({"typ": "JWT", "kid": key.kid or ""}, claims(user)),
    "alg null": with_header(alg=None),
    "alg a list": with_header(alg=["HS256", "EdDSA"]),
    "alg of the same family": with_header(alg="HS512"),
    "alg of the other family": with_header(alg="RS512"),
    "kid null": with_header(kid=None),
    "kid a number": with_header(kid=1),
    "kid a list": with_header(kid=["one name"]),
    "kid an object": with_header(kid={"one": "name"}),
    "critical": with_header(crit=["exp"], exp=1),
    "payload beside": with_header(crit=["b64"], b64=False),
    "header no JSON": lambda key, user: key.sign(b"{", claims(user)),
    "header a list": lambda key, user: key.sign([], claims(user)),
    "header nested": lambda key, user: key.sign(b"[" * 3000, claims(user)),
    "header no UTF-8": lambda key, user: key.sign(b'{"alg":"\xff"}', claims(user)),
    "claims no JSON": lambda key, _: key.token(b"user"),
    "claims a list": lambda key, _: key.token([]),
    "claims nested": lambda key, _: key.token(b'{"a":' + b"[" * 4000),
    "claims with a huge number": lambda key, _: key.token(b'{"exp":' + b"9" * 5000 + b"}"),
    "empty parts": lambda *_: "..",
    "no JWT": lambda *_: "0123456789abcdef",
    "no Base64": lambda key, user: key.token(claims(user)).replace(".", ".!", 1),
    "no ASCII": lambda key, user: key.token(claims(user)).encode() + b"\xc3\xa9\xff",
    "huge though right": with_claims(more="x" * 8192),
    "huge": lambda *_: "a.b." + "x" * 60_000,
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_refused_without_a_hint(guard: Guarded, user: str, name: str) -> None:
    token = BAD_TOKENS[name](guard.key, user)
    header = b"Bearer " + (token if isinstance(token, bytes) else token.encode())
    for path in ("/api/tasks", f"/api/{user}/tasks"):
        answer = guard.client.get(path, headers={b"Authorization": header})
        assert_unauthorized(answer)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic dTpw", "Bearer,", "Token ", "JWT "])
def test_a_request_without_a_bearer_token_is_refused(
    guard: Guarded, user: str, header: str | None
) -> None:
    token = guard.key.token(claims(user))
    headers = {} if header is None else {"Authorization": header + token * header.endswith(" ")}
    assert_unauthorized(guard.get(f"/api/tasks?access_token={token}", **headers))


def test_a_user_id_in_the_query_does_not_make_one_that_user(guard: Guarded, user: str) -> None:
    theirs = bearer(guard.key.token(claims(f"other-{user}")))
    assert guard.client.post("/api/tasks", json={"title": "x"}, headers=theirs).status_code == 201
    answer = guard.get(f"/api/tasks?user_id=other-{user}", guard.key.token(claims(user)))
    assert answer.status_code == 200
    assert answer.json() == []


@pytest.mark.parametrize("kid", ["../../dev/null", "/etc/passwd", "' OR 1=1; --", "\0", "x" * 4000])
@pytest.mark.parametrize("key", [SECRET, FOREIGN, Key("HS256", private=b"\0")], ids=str)
def test_a_kid_with_a_path_or_sql_in_it_is_only_a_name(
    public: Guarded, user: str, kid: str, key: Key
) -> None:
    assert_unauthorized(public.get("/api/tasks", key.token(claims(user), kid=kid)))


def public_forms() -> dict[str, bytes]:
    """What an attacker can read of the keys, in the forms that a careless verifier may use."""
    forms: dict[str, bytes] = {}
    encodings, layouts = serialization.Encoding, serialization.PublicFormat
    for key in (EDDSA, ES256, RS256):
        half = key.private.public_key()
        pem = half.public_bytes(encodings.PEM, layouts.SubjectPublicKeyInfo)
        forms |= {
            f"{key.algorithm} PEM": pem,
            f"{key.algorithm} PEM stripped": pem.strip(),
            f"{key.algorithm} DER": half.public_bytes(encodings.DER, layouts.SubjectPublicKeyInfo),
            f"{key.algorithm} JWK": to_bytes(key.jwk),
            f"{key.algorithm} JWK compact": json.dumps(key.jwk, separators=(",", ":")).encode(),
            f"{key.algorithm} part": (key.jwk.get("x") or key.jwk["n"]).encode(),
            f"{key.algorithm} OpenSSH": half.public_bytes(encodings.OpenSSH, layouts.OpenSSH),
        }
    return forms


PUBLIC_FORMS = public_forms()


@pytest.mark.parametrize("form", PUBLIC_FORMS)
@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_a_public_key_is_no_secret_to_sign_with(
    public: Guarded, user: str, form: str, algorithm: str
) -> None:
    for kid in (EDDSA.kid, RS256.kid, None):
        token = Key(algorithm, kid, PUBLIC_FORMS[form]).token(claims(user))
        assert_unauthorized(public.get("/api/tasks", token))


def test_nothing_is_fetched_from_where_a_token_points(
    guard: Guarded, user: str, trap: JwksServer
) -> None:
    pointers: list[dict[str, Any]] = [
        {"jku": trap.url},
        {"x5u": trap.url},
        {"jwk": FOREIGN.jwk},
        {"jku": trap.url, "kid": EDDSA.kid},
        {"jwk": FOREIGN.jwk, "kid": EDDSA.kid},
        {"jwk": {"kty": "oct", "k": base64url(b"0" * 32)}, "alg": "HS256"},
        {"kid": trap.url},
        {"jku": trap.url, "x5u": trap.url, "x5c": ["AAAA"], "jwk": FOREIGN.jwk},
    ]
    right = {"alg": guard.key.algorithm, "kid": guard.key.kid or ""}
    for pointer in pointers:
        assert_unauthorized(guard.get("/api/tasks", FOREIGN.token(claims(user), **pointer)))
        assert guard.status(guard.key.token(claims(user), **pointer | right)) == 200
    assert trap.asked == []


@pytest.mark.parametrize(
    "key", [WEAK, P384, FOR_OTHER_USE, FOR_OTHER_ALGORITHM, SYMMETRIC, *PUBLISHED], ids=str
)
def test_a_key_of_the_set_that_is_not_for_this_is_not_taken(
    public: Guarded, user: str, key: Key
) -> None:
    assert_unauthorized(public.get("/api/tasks", key.token(claims(user))))


# --- beside the tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_what_is_nobody_s_in_particular_stays_open(guard: Guarded, path: str) -> None:
    assert guard.client.get(path).status_code == 200
    assert guard.get(path, "rubbish").status_code == 200


def test_a_browser_can_ask_first_and_read_the_refusal(guard: Guarded) -> None:
    origin = {"Origin": "http://localhost:5173"}
    asked = {"Access-Control-Request-Method": "PATCH"}
    wanted = {"Access-Control-Request-Headers": "authorization, content-type"}
    answer = guard.client.options("/api/tasks", headers={**origin, **asked, **wanted})
    assert answer.status_code == 200
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    answer = guard.get("/api/tasks", **origin)
    assert_unauthorized(answer)
    assert answer.headers["Access-Control-Allow-Origin"] == origin["Origin"]


def test_no_token_and_no_secret_is_ever_logged(guard: Guarded, user: str) -> None:
    tokens = {name: make(guard.key, user) for name, make in BAD_TOKENS.items()}
    tokens["good"] = guard.key.token(claims(user))
    for name, token in tokens.items():
        if isinstance(token, str):
            guard.get(f"/api/tasks?access_token={quote(token[:3000])}&case={quote(name)}", token)
            guard.get(f"/api/{user}/tasks", token)
    assert guard.status(tokens["good"]) == 200  # type: ignore[arg-type]
    log = guard.service.log
    assert SECRET.private.decode() not in log
    assert "act as any user" not in log
    assert "Traceback" not in log
    for token in tokens.values():
        if isinstance(token, str):
            assert not [part for part in token.split(".") if len(part) > 20 and part in log]


def test_without_a_switch_the_log_says_once_that_anyone_may_act_as_any_user(user: str) -> None:
    with guarded(SECRET) as guard:
        assert guard.service.log.count("anyone may act as any user") == 1
        for path in ("/api/tasks", f"/api/{user}/tasks"):
            assert guard.get(path).status_code == guard.status("rubbish", path) == 200


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"AUTH_SECRET": "s" * 32, "AUTH_JWKS_URL": "http://localhost/jwks"}, "AUTH_JWKS_URL"),
        ({"AUTH_SECRET": PUBLIC_FORMS["EdDSA JWK"].decode()}, "AUTH_SECRET"),
    ],
)
def test_settings_that_contradict_each_other_stop_the_start(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(RuntimeError, match=named) as stopped, guarded(SECRET, **settings):
        pass
    line = str(stopped.value).partition("its log:\n")[2].strip()
    assert "\n" not in line
    assert settings.get("AUTH_SECRET", "\n") not in line


def test_a_short_secret_works_and_is_warned_of_once(user: str) -> None:
    key = Key("HS256", private="kürz \U0001f511".encode())
    with guarded(key, AUTH_SECRET=key.private.decode()) as guard:
        for number in range(3):
            token = key.token(claims(user, jti=str(number)))  # with an audience that nobody checks
            assert guard.status(token) == 200
        assert_unauthorized(guard.get("/api/tasks", SECRET.token(claims(user))))
        log = guard.service.log
        assert log.count("32 bytes") == 1
        assert "HMAC" not in log
        assert key.private.decode() not in log


# --- where the keys come from ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [EDDSA, ES256, RS256, OTHER_RSA], ids=str)
def test_every_algorithm_is_accepted_amid_keys_that_are_broken(
    public: Guarded, user: str, key: Key
) -> None:
    assert public.status(key.token(claims(user))) == 200
    assert public.status(key.token(claims(user)), f"/api/{user}/tasks") == 200
    assert public.status(key.token(claims(user)), f"/api/other-{user}/tasks") == 403


def test_a_token_without_a_kid_needs_the_only_key_of_its_algorithm(
    public: Guarded, user: str
) -> None:
    assert public.status(Key("ES256", None, ES256.private).token(claims(user))) == 200
    assert_unauthorized(
        public.get("/api/tasks", Key("RS256", None, RS256.private).token(claims(user)))
    )


def asynchronous(guard: Guarded) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(
        base_url=guard.service.url, trust_env=False, verify=False, timeout=60, limits=limits
    )


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition, "the clients get on")


@pytest.mark.parametrize("workers", [1, 2])
def test_while_keys_rotate_no_valid_token_is_refused(user: str, workers: int) -> None:
    old, new = Key("EdDSA", "old"), Key("ES256", "new")
    signing = old
    calls = [0] * 50

    async def call(client: httpx2.AsyncClient, number: int) -> set[int]:
        statuses = set()
        while calls[number] < 8 or min(calls) < 8 or signing is old:
            token = signing.token(claims(user, jti=f"{number} {calls[number]}"))
            answer = await client.get("/api/tasks", headers=bearer(token))
            statuses.add(answer.status_code)
            calls[number] += 1
        return statuses

    async def rotate(server: JwksServer) -> None:
        nonlocal signing
        await until(lambda: min(calls) >= 4)
        server.publish(old, new)
        server.close_gate()  # so that many wait for the new key at once
        signing = new
        await until(lambda: len(server.asked) > workers)
        await asyncio.sleep(0.2)
        server.open_gate()

    async def run(guard: Guarded, server: JwksServer) -> set[int]:
        async with asynchronous(guard) as client:
            clients = [call(client, number) for number in range(len(calls))]
            statuses, _ = await asyncio.gather(asyncio.gather(*clients), rotate(server))
        return set().union(*statuses)

    with (
        JwksServer(old) as server,
        guarded(old, AUTH_JWKS_URL=server.url, workers=workers) as guard,
    ):
        assert asyncio.run(run(guard, server)) == {200}
        assert workers < len(server.asked) <= 2 * workers  # at the start, and for the new key


def test_a_flood_of_unknown_kids_fetches_once_in_ten_seconds(user: str) -> None:
    new = Key("EdDSA", "new")
    with JwksServer(EDDSA) as server, guarded(EDDSA, AUTH_JWKS_URL=server.url) as guard:
        started = time.monotonic()
        for number in range(300):
            token = FOREIGN.token(claims(user), kid=f"unknown {number}")
            assert guard.status(token) == 401
            assert number % 50 or guard.status(EDDSA.token(claims(user))) == 200
        assert 2 <= len(server.asked) <= 2 + (time.monotonic() - started) // 10

        server.publish(new)
        known, token = EDDSA.token(claims(user)), new.token(claims(user))
        assert guard.status(known) == 200
        wait_until(lambda: guard.status(token) == 200, "the new key is found", 30)
        assert len(server.asked) <= 2 + (time.monotonic() - started) // 10
        # A key that is withdrawn takes along the tokens that were good a moment ago.
        assert_unauthorized(guard.get("/api/tasks", known))


def test_the_service_starts_without_its_keys_and_keeps_those_it_had(user: str) -> None:
    token = EDDSA.token(claims(user))
    server = JwksServer(EDDSA)
    elsewhere = server.url.replace("/jwks", "/elsewhere")
    server.first.extend(
        [
            (200, {"Content-Type": "text/html"}, b"<!doctype html>"),
            (302, {"Location": elsewhere}, b""),
            (500, {}, to_bytes({"keys": [EDDSA.jwk]})),
            (200, {}, b"\x1f\x8b"),  # compressed, which nobody asked for
            (200, {}, to_bytes({"keys": {"kid": EDDSA.jwk}})),
        ]
    )
    with guarded(EDDSA, AUTH_JWKS_URL=server.url) as guard:
        answer = guard.get("/api/tasks", token)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert guard.client.get("/health").status_code == 200
        assert_unauthorized(guard.get("/api/tasks"))
        for name in ("alg none", "no JWT"):
            assert_unauthorized(guard.get("/api/tasks", str(BAD_TOKENS[name](EDDSA, user))))

        def is_nearly_through() -> bool:
            assert guard.status(token) == 503
            return len(server.first) <= 1

        with server:
            wait_until(is_nearly_through, "all the bad answers but one are given", 60)
            wait_until(lambda: guard.status(token) == 200, "the keys are fetched", 20)
            assert set(server.asked) == {"/jwks"}
        # Away again: what is known goes on, and what is not is refused after one try.
        for _ in range(20):
            assert_unauthorized(guard.get("/api/tasks", FOREIGN.token(claims(user))))
        assert guard.status(EDDSA.token(claims(user, jti="another"))) == 200
        assert guard.status(token) == 200

        log = guard.service.log
        # Not a line for every try.
        for kind in ("JSONDecodeError", "302", "500", "UnicodeDecodeError", "TypeError"):
            assert log.count(f"AUTH_JWKS_URL: cannot be had ({kind})") == 1
        assert 1 <= log.count("(ConnectionRefusedError)") <= 2  # once for each time it was away
        assert "Traceback" not in log


def test_a_slow_key_set_makes_only_those_wait_who_need_it(user: str) -> None:
    new = Key("RS256", "new")
    known = EDDSA.token(claims(user))

    async def run(guard: Guarded, server: JwksServer) -> int:
        async with asynchronous(guard) as client:
            asked = len(server.asked)
            headers = bearer(new.token(claims(user)))
            waiting = asyncio.create_task(client.get("/api/tasks", headers=headers))
            await until(lambda: len(server.asked) > asked)
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/api/tasks", headers=bearer(known))).status_code == 200
            assert not waiting.done()
            server.open_gate()
            return (await waiting).status_code

    with JwksServer(EDDSA) as server:
        server.close_gate()
        with guarded(EDDSA, AUTH_JWKS_URL=server.url) as guard:
            assert "cannot be had" not in guard.service.log  # it is ready before that is known
            assert guard.status(known) == 503
            assert guard.client.get("/health").status_code == 200
            server.open_gate()
            wait_until(lambda: guard.status(known) == 200, "the keys are fetched", 20)
            server.publish(EDDSA, new)
            server.close_gate()
            assert asyncio.run(run(guard, server)) == 200
