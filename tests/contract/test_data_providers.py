"""The data providers that frontends bring along, as npm delivers them, run under Node."""

import subprocess

import pytest

from tests.support.node import JS, node
from tests.support.service import Service


@pytest.mark.parametrize("script", ["ra_data_json_server.mjs", "refine_simple_rest.mjs"])
def test_a_data_provider_works_unmodified(script: str, service: Service, user: str) -> None:
    command = [node(), script, f"{service.url}/api/{user}"]
    result = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
