"""Accounts: signing up, logging in, and what one may do with one's own account."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final, Literal
from unicodedata import normalize
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, EmailStr, Field
from pydantic_core import to_json

from auth.accounts import Accounts
from auth.tokens import Tokens
from errors import ApiError, Unauthorized
from fields import broken, characters
from models import Account, User
from openapi import OPEN, operation_id, refusals
from routes.route import TaskRoute
from schemas import Body, example

_FORM: Final = "application/x-www-form-urlencoded"
_LONGEST_FORM: Final = 32 * 1024  # bytes that are read: to decode %XX beside non-ASCII takes long
_LOG_IN_FORM: Final = {
    "type": "object",
    "properties": {"username": {"type": "string"}, "password": {"type": "string"}},
    "required": ["username", "password"],
}
_TAKES_FORM: Final = {"requestBody": {"content": {_FORM: {"schema": _LOG_IN_FORM}}}}
_BODY: Final = (400, 413, 415, 422, 500, 503)


def _bare(email: Any) -> Any:
    if "<" in str(email):  # as in `Ann <ann@example.com>`, which `EmailStr` takes
        raise broken("must be an e-mail address and nothing else")
    return email


Email = Annotated[EmailStr, BeforeValidator(_bare)]
Name = Annotated[str, *characters(200)]
# A password is the same from every keyboard (RFC 8265 section 4.2: NFC).
_NFC: Final = AfterValidator(partial(normalize, "NFC"))
Password = Annotated[str, *characters(128, 8), _NFC]
Guess = Annotated[str, *characters(1000), _NFC]

_ANN: Final[dict[str, Any]] = {"email": "ann@example.com", "name": "Ann"}
_KNOWN, _NEW = "correct horse", "battery staple"


class SignUp(BaseModel):
    """Who signs up; other fields are ignored."""

    model_config = example(**_ANN, password=_KNOWN)

    email: Email
    password: Password = Field(repr=False)
    name: Name | None = None


class LogIn(BaseModel):
    """Who logs in; `username` is another name of `email`, and other fields are ignored."""

    model_config = example(email=_ANN["email"], password=_KNOWN)

    email: Guess = Field(validation_alias=AliasChoices("email", "username"))
    password: Guess = Field(repr=False)


class AccountUpdate(Body):
    """The fields to change; a new password needs the current one."""

    model_config = example(password=_NEW, current_password=_KNOWN)

    name: Name | None = None
    password: Password = Field("", repr=False)  # which stands for "not sent"
    current_password: Guess | None = Field(None, repr=False)


class AccountDelete(Body):
    """Who deletes an account has to know its password."""

    model_config = example(password=_KNOWN)

    password: Guess | None = Field(None, repr=False)


class Me(User):
    """One's own account; with a token where a new password ended those before."""

    created_at: datetime
    access_token: str | None = None
    token_type: Literal["bearer"] | None = None
    expires_in: int | None = None


class Token(BaseModel):
    """A token, to be sent as `Authorization: Bearer`, and for how many seconds it is good."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: int
    user: User


_SIGN_UP: Final[dict[str, Any]] = {"response_model": Token, "openapi_extra": OPEN}
_LOG_IN: Final = _SIGN_UP | {"openapi_extra": OPEN | _TAKES_FORM}  # RFC 6749 section 4.3


class AccountRoute(TaskRoute):
    """A route of accounts; one that the document gives a form takes it, too."""

    def to_json(self, request: Request, raw: bytes) -> bytes:
        """Return the body of a request as JSON, or raise 415."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != _FORM or "requestBody" not in (self.openapi_extra or ()):
            return super().to_json(request, raw)
        first = b"&".join(raw[:_LONGEST_FORM].split(b"&", 100)[:100]).decode("utf-8", "replace")
        return to_json(dict(parse_qsl(first, keep_blank_values=True)))


def build_accounts_router(accounts: Accounts, tokens: Tokens) -> APIRouter:
    """Return the routes of accounts."""
    router = APIRouter(
        prefix="/api/auth",
        tags=["accounts"],
        route_class=AccountRoute,
        generate_unique_id_function=operation_id,
    )

    async def own(request: Request) -> Account:
        """Return the account that the token is for, or raise 401."""
        return await accounts.read(await tokens.user_of(request))

    Mine = Annotated[Account, Depends(own)]  # noqa: N806

    async def confirm(request: Request, me: Account, password: str | None) -> None:
        """Raise 403 unless this is the account's password."""
        if not (password and await accounts.verify(me.email, password, request.client)):
            raise ApiError(403, "The current password is wrong or missing.")

    def token(account: Account, status: int = 200) -> Response:
        return _answer({**tokens.issue(account), "user": _shown(account, User)}, status)

    @router.post("/register", include_in_schema=False)
    @router.post("/signup", status_code=201, responses=refusals(409, *_BODY), **_SIGN_UP)
    async def sign_up(new: SignUp) -> Response:
        """Makes an account; its `id` is the user whose tasks are its own."""
        return token(await accounts.create(new.email, new.password, new.name), 201)

    @router.post("/signin", include_in_schema=False, **_LOG_IN)
    @router.post("/login", responses=refusals(401, 429, *_BODY), **_LOG_IN)
    async def log_in(request: Request, guess: LogIn) -> Response:
        """From the fifth failure in a row for an e-mail on, each makes the next try wait."""
        if found := await accounts.verify(guess.email, guess.password, request.client):
            return token(found)
        raise Unauthorized("The e-mail or the password is wrong.")

    @router.get("/me", response_model=Me, responses=refusals(401, 500, 503))
    async def get_me(me: Mine) -> Response:
        """Whom the token is for."""
        return _answer(_shown(me, Me))

    @router.patch("/me", response_model=Me, responses=refusals(401, 403, 429, *_BODY))
    async def update_me(request: Request, me: Mine, change: AccountUpdate) -> Response:
        """A new password ends every token made before, and comes with a new one."""
        known, renamed = me.generation, "name" in change.model_fields_set
        if change.password or change.current_password:  # a wrong one is told, whatever changes
            await confirm(request, me, change.current_password)
        if change.password:
            me.password_hash = await accounts.hash(change.password)
            me.generation += 1
        if renamed:
            me.name = change.name
        await accounts.update(me, known, renamed=renamed)
        return _answer(_shown(me, Me) | (tokens.issue(me) if change.password else {}))

    @router.delete("/me", response_model=Me, responses=refusals(401, 403, 429, *_BODY))
    async def delete_me(request: Request, me: Mine, body: AccountDelete | None = None) -> Response:
        """Deletes the account and all its tasks."""
        await confirm(request, me, body.password if body else None)
        await accounts.delete(me)
        return _answer(_shown(me, Me))

    return router


def _shown(account: Account, model: type[User]) -> dict[str, Any]:
    return account.model_dump(include=set(model.model_fields))


def _answer(content: dict[str, Any], status: int = 200) -> Response:
    return Response(to_json(content), status, {"Cache-Control": "no-store"}, "application/json")
