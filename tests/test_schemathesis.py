"""Schemathesis finds nothing: whatever its checks make of the document, the service agrees.

A larger run by hand: SCHEMATHESIS_EXAMPLES=500 SCHEMATHESIS_SEED=$RANDOM pytest -k schemathesis
"""

import os
import subprocess
import sys

from tests.conftest import Database
from tests.support.service import REPOSITORY, Service

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "8")  # of each operation and phase
CONFIGURATION = REPOSITORY / "tests" / "schemathesis.toml"
SEED = os.environ.get("SCHEMATHESIS_SEED", "6")


def test_schemathesis_finds_nothing(new_database: Database) -> None:
    with Service(DATABASE_URL=new_database.url) as service:
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
                *("run", f"{service.url}/openapi.json"),
                *("--checks", "all", "--max-examples", EXAMPLES, "--seed", SEED),
                *("--generation-database", "none", "--no-color"),
            ],
            cwd=service.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert found.returncode == 0, found.stdout
    for mount in ("/api/tasks", "/api/{user_id}/tasks"):
        assert mount in found.stdout or "22/22" in found.stdout
    assert "Traceback" not in service.log
