"""`Service(app="tests.support.quick_hashes:app", …)`: passwords are hashed at next to no cost."""

from functools import partial

from argon2 import PasswordHasher

import accounts

accounts.PasswordHasher = partial(  # type: ignore[assignment, attr-defined]
    PasswordHasher, time_cost=1, memory_cost=8, parallelism=1
)

from main import app as app  # noqa: E402  (which makes its hasher on import)
