"""Every setting of the service, read once from the environment, then `.env.local`, then `.env`."""

import difflib
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, Self

from dotenv.parser import parse_stream
from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import Url
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from errors import rule
from fields import UserId, broken

_ENV_FILES: Final = (".env", ".env.local")  # of the working directory; the later goes first
_HOST: Final = re.compile(r"[\w.:%-]*|/[^@]*")  # a name, an address, or a socket's directory
_NO_PAGES: Final = ("ftp:", "ws:", "wss:", "data:", "blob:", "javascript:")  # no page has these


def refuse_to_start(reason: str) -> NoReturn:
    """End the process with one line that says why; with 3, neither uvicorn nor gunicorn makes a new
    worker.
    """
    print(reason, file=sys.stderr, flush=True)
    # Not sys.exit: uvicorn reports that from inside the lifespan as an exception with its
    # traceback.
    os._exit(3 if multiprocessing.parent_process() or "gunicorn" in sys.modules else 1)


def _database(url: SecretStr) -> SecretStr:
    value = url.get_secret_value()
    if value.startswith(("postgres://", "postgresql://")):
        try:
            given = parse_dsn(value)
        except ProgrammingError:
            raise broken("must be a PostgreSQL URL that libpq can read") from None
        hosts, ports = given.get("host", "").split(","), given.get("port", "").split(",")
        if (
            not all(map(_HOST.fullmatch, hosts))
            or not all(port == "" or (port.isdecimal() and int(port) < 65536) for port in ports)
            or "@" in given.get("dbname", "")
        ):  # one of these is a piece of the password, and what fails would say it
            raise broken("must have its password percent-encoded: %40 for @, %2F for /")
        return url
    # What begins with `file:`, SQLite may take for a URI.
    if not re.fullmatch(r"sqlite:///(?!:memory:$|file:)((?!://)[^?])+", value):
        raise broken("must be a postgresql:// URL, or sqlite:/// and the path of a file")
    return url


def _shared_secret(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        raise broken("must not be empty; to leave auth off, leave it out")
    from jwt import InvalidKeyError
    from jwt.algorithms import HMACAlgorithm

    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret.get_secret_value())
    except (InvalidKeyError, UnicodeEncodeError):
        raise broken("must be a shared secret in UTF-8, no PEM, certificate or JWK") from None
    return secret


def _listed(value: str) -> list[str]:
    return [item for item in map(str.strip, value.split(",")) if item]


def _is_origin(text: str) -> bool:
    """Return whether a browser can say this, letter by letter, in `Origin` (WHATWG URL)."""
    if text != text.lower() or text.startswith(_NO_PAGES) or re.search(r"[*@?#%\\]", text):
        return False
    try:
        url = Url(text)
    except ValueError:
        return False
    return f"{text}/" == str(url) or (text == str(url) and bool(url.host) and not url.path)


def _origins(value: list[str]) -> list[str]:
    if value != ["*"] and not all(map(_is_origin, value)):
        raise broken(
            "must be * or a comma list of origins as browsers say them: "
            "https://app.example.com, without a path, a usual port, * or capital letters"
        )
    return value


_List = Annotated[list[str], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """The settings, one attribute a variable; the README's table says what each does."""

    model_config = SettingsConfigDict(env_file=_ENV_FILES, extra="ignore", validate_default=False)

    database_url: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("sqlite:///tasks.db")
    cors_origins: Annotated[_List, AfterValidator(_origins)] = []  # none: this machine's own pages
    default_user_id: UserId = "demo"
    db_pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    auth_secret: Annotated[SecretStr, AfterValidator(_shared_secret)] | None = None
    auth_jwks_url: HttpUrl | None = None
    auth_issuer: Annotated[str, Field(min_length=1)] | None = None
    auth_audience: Annotated[_List, Field(min_length=1)] = []  # of which a token must name one
    auth_accounts: bool = False
    auth_token_days: Annotated[int, Field(ge=1, le=365)] = 7
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)
    ] = "info"

    @field_validator("*", mode="before")
    @classmethod
    def _without_blanks(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_switch(self) -> Self:
        if self.auth_secret and self.auth_jwks_url:
            raise broken("AUTH_SECRET and AUTH_JWKS_URL: set one of them, not both")
        if (self.auth_issuer or self.auth_audience) and not self.auth_on:
            raise broken("AUTH_ISSUER and AUTH_AUDIENCE need AUTH_SECRET or AUTH_JWKS_URL")
        if self.auth_accounts and not self.auth_secret:
            raise broken("AUTH_ACCOUNTS needs AUTH_SECRET to sign tokens; AUTH_JWKS_URL cannot")
        return self

    @property
    def auth_on(self) -> bool:
        """Whether requests need a bearer token."""
        return bool(self.auth_secret or self.auth_jwks_url)


def env_files() -> list[str]:
    """Return which of the files that settings can be in are there, the first to be asked first."""
    return [name for name in reversed(_ENV_FILES) if Path(name).is_file()]


def _check_names() -> None:
    """Stop the start where a file, or the name of a variable, would be passed over in silence."""
    names = set(os.environ)
    for file in env_files():
        with open(file, encoding="utf-8") as lines:
            for binding in parse_stream(lines):
                # UTF-16 without its mark is UTF-8 full of NULs.
                wrong = binding.error or "\0" in binding.original.string
                if wrong or (binding.key and binding.value is None):
                    line = binding.original.line + binding.original.string.rstrip().count("\n")
                    refuse_to_start(f"{file}: line {line} is not NAME=value")
                names.add(binding.key or "")
    # Of auth alone: without it everybody is let in, and near no other names are there others' too,
    # but for those of Auth0.
    ours = {name.upper() for name in Settings.model_fields}
    for name in sorted({name.upper() for name in names if name[:6] != "AUTH0_"} - ours):
        meant = difflib.get_close_matches(name, [name for name in ours if "AUTH_" in name], 1, 0.85)
        if meant:
            refuse_to_start(f"{name} is no setting: {meant[0]} is meant, or another name is needed")


def load_settings() -> Settings:
    """Return the settings, or stop the start with one line that names the bad variable."""
    try:
        _check_names()
        return Settings()
    except ValidationError as invalid:
        error = invalid.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in error["loc"][:1]).upper()
        refuse_to_start(f"{name}: {rule(error)}" if name else str(error["msg"]))
    except UnicodeDecodeError:
        refuse_to_start(".env and .env.local must be in UTF-8, and one of them is not")
    except OSError as error:
        refuse_to_start(f"{error.filename}: {error.strerror}")
