"""What Schemathesis draws for the format of a header that it does not know."""

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format("entity-tags", st.sampled_from(["*", '"7"', 'W/"7"', '"7-1", "x,y"']))
