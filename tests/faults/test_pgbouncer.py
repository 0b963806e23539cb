"""Nothing depends on the state of a session: PgBouncer may give each statement another one."""

import os
import re
import subprocess
import sys

from tests.support.needs import need
from tests.support.service import REPOSITORY

# Not what stands before the API, nor what its filters mean, nor what starts services of its own,
# which ask the database directly.
OTHER = ["cors", "errors", "fields", "lists", "mcp", "model"]


def test_the_api_tests_pass_through_pgbouncer_in_transaction_mode_with_four_workers() -> None:
    need("pgbouncer", "apt-get install pgbouncer")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/integration", "--through-pgbouncer"),
            *("--maxfail=5", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *(f"--ignore=tests/integration/test_{name}.py" for name in OTHER),
        ],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"PostgreSQL .*: (\d+) passed", result.stdout)
    assert int(passed[1] if passed else 0) > 500, result.stdout
