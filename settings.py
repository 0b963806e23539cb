"""Every setting of the service, read once from the environment, then `.env.local`, then `.env`."""

import multiprocessing
import os
import re
import sys
from typing import Annotated, Literal, NoReturn, Self

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from pydantic import (
    BeforeValidator,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from errors import rule
from fields import UserId

_ORIGIN = re.compile(r"https?://[^/?#\s,]+")


def refuse_to_start(reason: str) -> NoReturn:
    """End the process with one line that says why it cannot serve.

    The exit code is 1; in a worker it is 3, which tells uvicorn's supervisor not to try again.
    """
    print(reason, file=sys.stderr, flush=True)
    # Not sys.exit: uvicorn reports that from inside the lifespan as an exception with its
    # traceback.
    os._exit(3 if multiprocessing.parent_process() else 1)


def _must(rule: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{rule}", {"rule": rule})


class Settings(BaseSettings):
    """The settings, one attribute a variable; the README's table says what each does."""

    model_config = SettingsConfigDict(env_file=(".env", ".env.local"), extra="ignore")

    database_url: SecretStr = SecretStr("sqlite:///tasks.db")
    cors_origins: str = ""
    default_user_id: UserId = "demo"
    db_pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    auth_secret: SecretStr | None = None
    auth_jwks_url: HttpUrl | None = None
    auth_issuer: Annotated[str, Field(min_length=1)] | None = None
    auth_audience: Annotated[str, Field(min_length=1)] | None = None
    auth_accounts: bool = False
    auth_token_days: Annotated[int, Field(ge=1, le=365)] = 7
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = "info"

    @field_validator("database_url")
    @classmethod
    def _a_database_we_speak(cls, url: SecretStr) -> SecretStr:
        value = url.get_secret_value()
        if value.startswith(("postgres://", "postgresql://")):
            try:
                parse_dsn(value)
            except ProgrammingError:
                raise _must("must be a PostgreSQL URL that libpq can read") from None
            return url
        try:
            parsed = make_url(value)
        except (ArgumentError, ValueError):  # what ValueError says may be the password
            raise _must("must be a sqlite:/// or postgresql:// URL") from None
        if parsed.drivername != "sqlite":
            raise _must("must be a sqlite:/// or postgresql:// URL")
        if parsed.database in (None, "", ":memory:"):
            raise _must("must name a file, such as sqlite:///tasks.db: tasks outlive the process")
        return url

    @field_validator("auth_secret")
    @classmethod
    def _no_public_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        if not secret.get_secret_value():
            raise _must("must not be empty; to leave auth off, leave it out")
        from jwt import InvalidKeyError
        from jwt.algorithms import HMACAlgorithm

        try:
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret.get_secret_value())
        except (InvalidKeyError, UnicodeEncodeError):
            raise _must("must be a shared secret in UTF-8, not a PEM, certificate or JWK") from None
        return secret

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in filter(None, map(str.strip, value.split(","))):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise _must("must be * or a comma list of origins like https://app.example.com")
        return value

    @model_validator(mode="after")
    def _one_switch(self) -> Self:
        if self.auth_secret and self.auth_jwks_url:
            raise _must("AUTH_SECRET and AUTH_JWKS_URL: set one of them, not both")
        if (self.auth_issuer or self.auth_audience) and not self.auth_on:
            raise _must("AUTH_ISSUER and AUTH_AUDIENCE need AUTH_SECRET or AUTH_JWKS_URL")
        if self.auth_accounts and not self.auth_secret:
            raise _must("AUTH_ACCOUNTS needs AUTH_SECRET to sign tokens; AUTH_JWKS_URL cannot")
        return self

    @property
    def auth_on(self) -> bool:
        """Whether requests need a bearer token."""
        return bool(self.auth_secret or self.auth_jwks_url)

    @property
    def origins(self) -> list[str]:
        """The origins of `CORS_ORIGINS`; empty means this machine's own pages."""
        return [origin for origin in map(str.strip, self.cors_origins.split(",")) if origin]


def load_settings() -> Settings:
    """Return the settings, or stop the start with one line that names the bad variable."""
    try:
        return Settings()
    except ValidationError as invalid:
        error = invalid.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in error["loc"][:1]).upper()
        refuse_to_start(f"{name}: {rule(error)}" if name else str(error["msg"]))
    except UnicodeDecodeError:
        refuse_to_start(".env and .env.local must be in UTF-8, and one of them is not")
