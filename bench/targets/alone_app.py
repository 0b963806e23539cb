"""This service with every call in a statement of its own, to measure what sharing them brings."""

from database import Database
from engines import sqlite

Database._gatherer = lambda *_: None  # type: ignore[method-assign]
sqlite._TURN = 0  # type: ignore[misc]

from main import app as app  # noqa: E402
