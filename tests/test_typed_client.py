"""A TypeScript client out of the OpenAPI document: it compiles strictly, and then works."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.node import JS, node
from tests.support.service import REPOSITORY, Service

PROGRAM = "typed_client.ts"


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled against the types of the document in the repository."""
    directory = tmp_path_factory.mktemp("typescript")
    tools = JS / "node_modules" / ".bin"
    (directory / "node_modules").symlink_to(JS / "node_modules")
    for name in ("package.json", "tsconfig.json", PROGRAM):
        shutil.copy(JS / name, directory)
    document = str(REPOSITORY / "openapi.json")
    run(node(), str(tools / "openapi-typescript"), document, "-o", "schema.d.ts", cwd=directory)
    run(node(), str(tools / "tsc"), "--strict", "--project", ".", cwd=directory)
    return directory / PROGRAM.replace(".ts", ".js")


def test_it_compiles_under_strict_and_works(compiled: Path, service: Service, user: str) -> None:
    output = run(node(), str(compiled), service.url, user, cwd=compiled.parent)
    assert output == "every operation works\n"


def test_it_uses_every_operation() -> None:
    called = set(re.findall(r'client\.([A-Z]+)\("([^"]+)"', (JS / PROGRAM).read_text()))
    paths = json.loads((REPOSITORY / "openapi.json").read_text())["paths"]
    assert called == {(method.upper(), path) for path, each in paths.items() for method in each}
