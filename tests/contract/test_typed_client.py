"""A TypeScript client out of the OpenAPI document: it compiles strictly, and then works."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.node import JS, node
from tests.support.service import REPOSITORY, Service

PROGRAM = "typed_client.ts"


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_compiles_under_strict_and_works(tmp_path: Path, user: str) -> None:
    tools = JS / "node_modules" / ".bin"
    node()
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    for name in ("package.json", "tsconfig.json", PROGRAM):
        shutil.copy(JS / name, tmp_path)
    document = str(REPOSITORY / "openapi.json")
    run(node(), str(tools / "openapi-typescript"), document, "-o", "schema.d.ts", cwd=tmp_path)
    run(node(), str(tools / "tsc"), "--strict", "--project", ".", cwd=tmp_path)
    with Service(DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
        program = PROGRAM.replace(".ts", ".js")
        output = run(node(), program, service.url, user, cwd=tmp_path)
    assert output == "every operation works\n"


def test_it_uses_every_operation() -> None:
    called = set(re.findall(r'client\.([A-Z]+)\("([^"]+)"', (JS / PROGRAM).read_text()))
    paths = json.loads((REPOSITORY / "openapi.json").read_text())["paths"]
    assert called == {(method.upper(), path) for path, each in paths.items() for method in each}
