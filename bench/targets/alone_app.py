"""This service with every call in a statement of its own, to measure what sharing them brings."""

import sqlite
from database import Database

Database._gatherer = lambda *_: None  # type: ignore[method-assign]
sqlite._MOST = 1  # type: ignore[misc]

from main import app as app  # noqa: E402
