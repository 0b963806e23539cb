"""The two databases, each behind the same `Pool`: rows of one statement, or `Unavailable`."""
