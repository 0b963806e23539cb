"""The two databases, each behind the same `Pool`: rows of one statement, or `Unavailable`."""

from typing import Final

# Seconds within which a call is answered, queueing and connecting included; and a call that may
# touch all that a user has.
DEADLINE: Final = 4.0
BULK_DEADLINE: Final = 30.0
