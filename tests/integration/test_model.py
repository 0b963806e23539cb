"""Random lists of random tasks: what SQLite and PostgreSQL answer is what plain Python says."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import model
from tests.support.api import create
from tests.support.service import Service
from tests.support.strategies import (
    REPRODUCIBLE,
    bulk_filters,
    changes,
    filters,
    new_tasks,
    orders,
    pages,
)


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx2.Client]:
    """A client for all the examples."""
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        yield client


@given(data=st.data(), bodies=st.lists(new_tasks, min_size=3, max_size=12))
@settings(REPRODUCIBLE, max_examples=60)
def test_lists_counts_and_bulk_calls_are_those_of_the_model(
    api: httpx2.Client, data: st.DataObject, bodies: list[dict[str, Any]]
) -> None:
    # A task that repeats would make another (test_recurrence.py).
    bodies = [{**body, "recurrence": None} for body in bodies]
    path = f"/api/model-{uuid4().hex}/tasks"
    tasks = [create(api, path, **body) for body in bodies]
    # One change of several leaves some with equal timestamps.
    few = st.lists(st.sampled_from([task["id"] for task in tasks]), min_size=1, unique=True)
    chosen = data.draw(few, "changed")
    change = {**data.draw(changes, "change"), "recurrence": None}
    assert api.patch(path, params={"id": chosen}, json=change).json() == {"updated": len(chosen)}
    tasks = api.get(path).json()
    assert len(tasks) == len(bodies)

    for _ in range(6):
        query = data.draw(filters(tasks), "filters")
        matching = model.select(tasks, query)
        assert api.get(f"{path}/stats", params=query).json() == model.stats(matching)

        query += data.draw(orders(), "order") + data.draw(pages(), "page")
        expected, more, less = model.page(model.arrange(matching, query), query)
        answer = api.get(path, params=query)
        assert answer.status_code == 200, answer.text
        assert [task["id"] for task in answer.json()] == [task["id"] for task in expected]
        assert answer.json() == expected
        assert answer.headers["x-total-count"] == str(len(matching))
        assert ("next" in answer.links, "prev" in answer.links) == (more, less)

    doomed = data.draw(bulk_filters(tasks), "filter of the bulk delete")
    gone = {task["id"] for task in model.select(tasks, doomed)}
    assert api.request("DELETE", path, params=doomed).json() == {"deleted": len(gone)}
    assert {task["id"] for task in api.get(path).json()} == {t["id"] for t in tasks} - gone
