"""Programs from outside PyPI that some tests need: there in CI, perhaps not on a laptop."""

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """Return the path of `program`; without it the test fails in CI, elsewhere it is not run.

    The summary lists every such test under NOT TESTED, so that nobody takes it for a pass.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin"
    if found := shutil.which(program, path=path):
        return found
    reason = f"{program} is not installed ({package})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
