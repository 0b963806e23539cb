"""`Service(app="tests.support.quick_hashes:app", …)`: passwords are hashed at next to no cost.

`KNOWN_FOR` in its environment: after so many seconds a worker looks again which tokens count.
"""

import os
from functools import partial

from argon2 import PasswordHasher

from auth import accounts

accounts.PasswordHasher = partial(  # type: ignore[assignment, attr-defined]
    PasswordHasher, time_cost=1, memory_cost=8
)
accounts._KNOWN_FOR = float(os.environ.get("KNOWN_FOR", accounts._KNOWN_FOR))  # type: ignore[misc]

from main import app as app  # noqa: E402  (which makes its hasher on import)
