"""A Python client out of the OpenAPI document: it has every call, and works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.support.service import REPOSITORY, Service

DOCUMENT = REPOSITORY / "openapi.json"
PROGRAM = """
import datetime, sys
from tasks_client import Client
from tasks_client.api.user_tasks import (
    complete_user_task, create_user_task, delete_user_task, get_user_task, list_user_tasks,
    update_user_task,
)
from tasks_client.models import Completion, TaskCreate, TaskUpdate

url, user = sys.argv[1:]
client = Client(base_url=url, raise_on_unexpected_status=True)
new = TaskCreate(title="Buy milk", due_date=datetime.date(2026, 11, 21), tags=["shopping"])
made = create_user_task.sync(user, client=client, body=new)
assert (made.title, made.due_date, made.priority.value) == ("Buy milk", "2026-11-21", "none")
(listed,) = list_user_tasks.sync(user, client=client, tag=["shopping"])
assert listed == made

read = get_user_task.sync_detailed(user, made.id, client=client)
tag = read.headers["etag"]
body = TaskUpdate(due_date="2026-12-01T14:30")
changed = update_user_task.sync(user, made.id, client=client, body=body, if_match=tag)
assert changed.due_date == "2026-12-01T14:30:00"
late = update_user_task.sync(user, made.id, client=client, body=body, if_match=tag)
assert (late.status, late.title) == (412, "Precondition Failed")
same = get_user_task.sync_detailed(user, made.id, client=client, if_none_match="*")
assert same.status_code == 304
assert complete_user_task.sync(user, made.id, client=client, body=Completion(True)).completed
assert delete_user_task.sync(user, made.id, client=client).id == made.id
print("a round trip")
"""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package `tasks_client`."""
    directory = tmp_path_factory.mktemp("python")
    command = ["openapi_python_client", "generate", "--path", str(DOCUMENT), "--meta", "none"]
    subprocess.run(
        [sys.executable, "-m", *command, "--output-path", str(directory / "tasks_client")],
        check=True,
        timeout=120,
    )
    return directory


def test_it_has_every_call(generated: Path) -> None:
    calls = list((generated / "tasks_client" / "api").glob("*/[a-z]*.py"))
    paths = json.loads(DOCUMENT.read_text())["paths"].values()
    assert len(calls) == sum(map(len, paths))


def test_it_makes_a_round_trip(generated: Path, new_database: Database) -> None:
    with Service(DATABASE_URL=new_database.url) as service:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, service.url, "zoe"],
            cwd=generated,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.stdout == "a round trip\n", result.stderr
