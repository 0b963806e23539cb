"""What Schemathesis draws for formats that it does not know."""

import schemathesis
from hypothesis import strategies as st

# No schema says that what repeats needs a due date, then and later: test_recurrence.py does.
schemathesis.openapi.format("rrule", st.just(""))
schemathesis.openapi.format("entity-tags", st.sampled_from(["*", '"7"', 'W/"7"', '"7-1", "x,y"']))
