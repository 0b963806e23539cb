"""Accounts: signing up, logging in, and what one may do with one's own account."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    validate_email,
)
from pydantic_core import PydanticCustomError, to_json

from accounts import Accounts
from errors import ApiError
from models import Account
from routes.route import TaskRoute
from schemas import Body, Characters, Problem
from tokens import Tokens, unauthorized

_FORM: Final = "application/x-www-form-urlencoded"
# RFC 6749 section 4.3.2
_FORM_SCHEMA: Final = {
    "type": "object",
    "properties": {"username": {"type": "string"}, "password": {"type": "string"}},
    "required": ["username", "password"],
}


def _email(value: str) -> str:
    try:
        return validate_email(value)[1]
    except PydanticCustomError:  # its message repeats parts of the address
        raise PydanticCustomError("rule", "must be an e-mail address") from None


def _perhaps_an_email(value: str) -> str:
    try:
        return _email(value)
    except PydanticCustomError:
        return value


Email = Annotated[
    str, AfterValidator(_email), WithJsonSchema({"type": "string", "format": "email"})
]
Name = Annotated[str, Characters(200)]
Password = Annotated[str, Characters(128, 8)]
Guess = Annotated[str, Characters(1000)]  # of a password, right or wrong


class SignUp(BaseModel):
    """Who signs up; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    email: Email
    password: Password = Field(repr=False)
    name: Name | None = None


class LogIn(BaseModel):
    """Who logs in; `username` is another name of `email`, and other fields are ignored."""

    model_config = ConfigDict(strict=True)

    email: Annotated[str, Characters(320), AfterValidator(_perhaps_an_email)] = Field(
        validation_alias=AliasChoices("email", "username")
    )
    password: Guess = Field(repr=False)


class AccountUpdate(Body):
    """The fields to change; a new password needs the current one."""

    name: Name | None = None
    # The None stands for "not sent".
    password: Password = Field(None, repr=False)  # type: ignore[assignment]
    current_password: Guess | None = Field(None, repr=False)


class AccountDelete(Body):
    """The password, for nobody is to delete an account by a token that was left open."""

    password: Guess | None = Field(None, repr=False)


class User(BaseModel):
    """Whom a token is for."""

    id: str
    email: str
    name: str | None


class Me(User):
    """One's own account."""

    created_at: datetime


class Token(BaseModel):
    """A token, to be sent as `Authorization: Bearer`; `expires_in` is in seconds."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: int
    user: User


class ChangedMe(Me):
    """One's own account as it is now; after a new password with a token, since the old ones end."""

    access_token: str | None = None
    token_type: Literal["bearer"] | None = None
    expires_in: int | None = None


class LogInRoute(TaskRoute):
    """A route whose JSON may come as a form instead (RFC 6749 section 4.3)."""

    def to_json(self, raw: bytes, media_type: str) -> bytes:
        """Return a body as JSON."""
        if media_type != _FORM:
            return super().to_json(raw, media_type)
        try:
            fields = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError:
            raise ApiError(400, "The form is not in UTF-8.") from None
        if len(dict(fields)) < len(fields):
            raise ApiError(400, "A field of the form comes twice.")
        return to_json(dict(fields))


def build_accounts_router(accounts: Accounts, tokens: Tokens) -> APIRouter:
    """Return the routes of accounts."""
    router = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=TaskRoute)

    async def own(request: Request) -> Account:
        """Return the account that the token is for, or raise 401."""
        if account := await accounts.read(await tokens.user_of(request)):
            return account
        raise unauthorized()

    async def confirm(request: Request, mine: Account, password: str | None) -> None:
        """Raise 403 unless that is the account's password."""
        if password is None or not await accounts.authenticate(
            mine.email, password, _host(request)
        ):
            raise ApiError(403, "The current password is wrong or missing.")

    Mine = Annotated[Account, Depends(own)]  # noqa: N806

    @router.post("/register", include_in_schema=False)
    @router.post(
        "/signup", status_code=201, response_model=Token, responses=_refusals(409, 422, 500, 503)
    )
    async def sign_up(new: SignUp) -> Response:
        """Makes an account; its `id` is the user whose tasks are its own."""
        return _token(await accounts.create(new.email, new.password, new.name), 201)

    async def log_in(request: Request, guess: LogIn) -> Response:
        """After 5 failures in a row for an e-mail each further one makes the next try wait."""
        account = await accounts.authenticate(guess.email, guess.password, _host(request))
        if account is None:
            raise unauthorized("The e-mail or the password is wrong.")
        return _token(account)

    for path in ("/login", "/signin"):
        router.add_api_route(
            path,
            log_in,
            methods=["POST"],
            response_model=Token,
            responses=_refusals(401, 422, 429, 500, 503),
            openapi_extra={"requestBody": {"content": {_FORM: {"schema": _FORM_SCHEMA}}}},
            include_in_schema=path == "/login",
            route_class_override=LogInRoute,
        )

    @router.get("/me", response_model=Me, responses=_refusals(401, 500, 503))
    async def get_me(mine: Mine) -> Response:
        """Whom the token is for."""
        return _answer(_fields(mine, Me))

    @router.patch(
        "/me", response_model=ChangedMe, responses=_refusals(401, 403, 422, 429, 500, 503)
    )
    async def update_me(request: Request, mine: Mine, change: AccountUpdate) -> Response:
        """A new password ends every token made before, and comes with a new one."""
        if change.password is not None:
            await confirm(request, mine, change.current_password)
        name = change.name if "name" in change.model_fields_set else mine.name
        changed = await accounts.update(mine, name, change.password)
        if changed is None:  # another new password was first, and ended this token
            raise unauthorized()
        token = {} if change.password is None else tokens.issue(changed)
        return _answer(_fields(changed, Me) | token)

    @router.delete("/me", response_model=Me, responses=_refusals(401, 403, 422, 429, 500, 503))
    async def delete_me(
        request: Request, mine: Mine, body: AccountDelete | None = None
    ) -> Response:
        """Deletes the account with all its tasks; answers what it was."""
        await confirm(request, mine, body.password if body else None)
        if not await accounts.delete(mine):
            raise unauthorized()
        return _answer(_fields(mine, Me))

    def _token(account: Account, status: int = 200) -> Response:
        return _answer(tokens.issue(account) | {"user": _fields(account, User)}, status)

    return router


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _fields(account: Account, model: type[User]) -> dict[str, Any]:
    return account.model_dump(include=set(model.model_fields))


def _host(request: Request) -> str:
    return request.client.host if request.client else ""


def _answer(content: dict[str, Any], status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(to_json(content), status, headers, "application/json")
