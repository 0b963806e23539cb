"""Keys, tokens (also ones that no library would make), and a server that hands out a JWK set."""

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.processes import Port

ISSUER = "https://auth.example"
AUDIENCE = "https://tasks.example"
_MAKERS: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
}


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Key:
    """A key to sign tokens with: `private` is made when it is not given, and a secret is bytes."""

    algorithm: str
    kid: str | None = None
    private: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.private = self.private or _MAKERS[self.algorithm]()

    @cached_property
    def jwk(self) -> dict[str, Any]:
        """Its public half as a JSON Web Key (RFC 7517)."""
        return self._jwk(self.private.public_key())

    @property
    def private_jwk(self) -> dict[str, Any]:
        """All of it as a JSON Web Key, which nobody should hand out."""
        return self._jwk(self.private)

    def _jwk(self, key: Any) -> dict[str, Any]:
        to_jwk: Any = jwt.get_algorithm_by_name(self.algorithm).to_jwk
        jwk: dict[str, Any] = to_jwk(key, as_dict=True)
        return jwk | ({"kid": self.kid} if self.kid else {})

    def token(self, claims: Any, **header: Any) -> str:
        """Return a token, whatever is in it; a header or the claims can be raw bytes, too."""
        named = {"kid": self.kid} if self.kid else {}
        return self.sign({"typ": "JWT", "alg": self.algorithm, **named, **header}, claims)

    def sign(self, header: Any, claims: Any) -> str:
        """Return a token with just this header."""
        parts = (part if isinstance(part, bytes) else to_bytes(part) for part in (header, claims))
        text = ".".join(map(base64url, parts))
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(text.encode(), self.private)
        return f"{text}.{base64url(signature)}"


def to_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def claims(user: str, **changes: Any) -> dict[str, Any]:
    """Return claims that are good for an hour, with these changes; `...` leaves a claim out."""
    now = int(time.time())
    good = {"sub": user, "exp": now + 3600, "iat": now, "iss": ISSUER, "aud": AUDIENCE}
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


class JwksServer:
    """An HTTP server with a JWK set that remembers what it was asked, and can be slow or away.

    `first`: answers (status, headers, body) to give before it gives the set. `close_gate` makes it
    wait before it answers, `open_gate` lets it go on.
    """

    def __init__(self, *keys: Key | object) -> None:
        self._port = Port()
        self.url = f"http://127.0.0.1:{self._port.number}/jwks"
        self.first: deque[tuple[int, dict[str, str], bytes]] = deque()
        self.asked: list[str] = []
        self._gate = threading.Event()
        self._gate.set()
        self._server: ThreadingHTTPServer | None = None
        self.publish(*keys)

    def publish(self, *keys: Key | object) -> None:
        """Replace the set."""
        self._document = {"keys": [key.jwk if isinstance(key, Key) else key for key in keys]}

    def close_gate(self) -> None:
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    def start(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port.number), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Go away: connections are refused from now on."""
        self.open_gate()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str) -> tuple[int, Iterable[tuple[str, str]], bytes]:
        self.asked.append(path)
        self._gate.wait(30)
        if self.first:
            status, headers, body = self.first.popleft()
            return status, headers.items(), body
        return 200, [("Content-Type", "application/json")], to_bytes(self._document)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def __enter__(self) -> Self:
        return self if self._server else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._port.release()
