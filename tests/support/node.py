"""Node, and the npm packages that some tests run under it."""

import fcntl
import subprocess
from functools import cache
from pathlib import Path

from tests.support.needs import need

JS = Path(__file__).parents[1] / "js"


@cache
def node() -> str:
    """Return the path of Node, with the packages pinned in `tests/js` installed; see `need`."""
    node, npm = need("node", "Debian's nodejs"), need("npm", "Debian's npm")
    wanted = JS / "package-lock.json"
    installed = JS / "node_modules" / ".package-lock.json"
    with (JS / "package.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of the processes that test in parallel, one installs
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=JS, check=True)
    return node
