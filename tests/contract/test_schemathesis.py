"""Schemathesis finds nothing: whatever its checks make of the document, the service agrees.

A larger run by hand: SCHEMATHESIS_EXAMPLES=500 SCHEMATHESIS_SEED=$RANDOM pytest -k schemathesis
"""

import os
import subprocess
import sys

from tests.conftest import Database
from tests.support.service import REPOSITORY, Service

LARGER = os.environ.get("SCHEMATHESIS_EXAMPLES")  # of each operation and phase
SEED = os.environ.get("SCHEMATHESIS_SEED", "6")
CONFIGURATION = REPOSITORY / "tests" / "schemathesis.toml"
HOOKS = "tests.support.schemathesis_hooks"
# The thousands of cases that follow from the document alone are shared out: one mount's on each
# database. The random ones, and sequences of calls, are about both mounts on both.
ELSEWHERE = {"sqlite": "^/api/tasks", "postgresql": "^/api/{user_id}/"}


def test_schemathesis_finds_nothing(new_database: Database) -> None:
    with Service(DATABASE_URL=new_database.url) as service:
        configuration = service.directory / "schemathesis.toml"
        configuration.write_text(CONFIGURATION.read_text())
        if LARGER is None:
            with configuration.open("a") as file:
                file.write(
                    f"[[operations]]\ninclude-path-regex = '{ELSEWHERE[new_database.name]}'\n"
                    "phases.coverage.enabled = false\n"
                )
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
                *("run", f"{service.url}/openapi.json", "--checks", "all"),
                # It takes a list for gone whose tasks were deleted; the state machine knows better.
                *("--exclude-checks", "use_after_free"),
                *("--max-examples", LARGER or "5", "--seed", SEED),
                *("--generation-database", "none", "--no-color"),
            ],
            cwd=service.directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SCHEMATHESIS_HOOKS": HOOKS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert found.returncode == 0, found.stdout
    assert "Tested: 24" in found.stdout, found.stdout
    assert "Traceback" not in service.log
