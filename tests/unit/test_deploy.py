"""The image and the manifests: what can be said of them without a daemon."""

import ast
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.service import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
LABELS: dict[str, str] = KUSTOMIZATION["labels"][0]["pairs"]
NEWEST = kubernetes_validate.latest_version()


def manifest(name: str) -> Any:
    """Return a resource with the labels that Kustomize gives it."""
    resource = yaml.safe_load((DEPLOY / name).read_text())
    resource["metadata"]["labels"] = LABELS
    spec = resource.get("spec", {})
    if resource["kind"] == "Service":
        spec["selector"] = LABELS
    if resource["kind"] in ("Deployment", "PodDisruptionBudget"):
        spec["selector"] = {"matchLabels": LABELS}
    if "template" in spec:
        spec["template"]["metadata"] = {"labels": LABELS}
    return resource


CONTAINER: Any = manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def test_every_manifest_is_a_resource() -> None:
    files = {path.name for path in DEPLOY.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_a_resource_is_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(manifest(name), NEWEST, strict=True)


def test_a_misspelt_field_is_found() -> None:
    broken = manifest("deployment.yaml")
    broken["spec"]["replicsa"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_a_copy_has_the_time_to_end_what_it_serves() -> None:
    spec = manifest("deployment.yaml")["spec"]["template"]["spec"]
    (graceful,) = re.findall(r'"--timeout-graceful-shutdown", "(\d+)"', DOCKERFILE)
    leaving = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert leaving + int(graceful) < spec["terminationGracePeriodSeconds"]


def test_the_secrets_stand_for_nothing() -> None:
    secret = manifest("secret.yaml")
    assert set(secret["stringData"].values()) == {"replace-me"}


def test_the_image_and_the_manifest_agree_on_user_and_port() -> None:
    spec = manifest("deployment.yaml")["spec"]["template"]["spec"]
    assert f"USER {spec['securityContext']['runAsUser']}" in DOCKERFILE
    assert f"EXPOSE {CONTAINER['ports'][0]['containerPort']}" in DOCKERFILE


def test_the_image_is_started_as_is_advised_for_any_host() -> None:
    """Connections that are idle are the proxy's to close."""
    production = (REPOSITORY / "docs/production.md").read_text()
    (value,) = set(re.findall(r"--timeout-keep-alive (\w+) ", production))
    assert f'"--timeout-keep-alive", "{value}"' in DOCKERFILE


def in_the_image() -> list[Path]:
    """Return what `.dockerignore` lets into the image."""
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    taken = [line[1:] for line in ignored if line.startswith("!")]
    return [path for pattern in taken for path in REPOSITORY.glob(pattern)]


def test_the_image_takes_the_schema_up_and_back(tmp_path: Path) -> None:
    for path in in_the_image():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{tmp_path}/tasks.db"}
    for words in ("upgrade head", "downgrade 0005"):
        command = [sys.executable, "-m", "alembic", *words.split()]
        subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=60)
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as connection:
        assert connection.execute("SELECT * FROM tasks_schema_version").fetchall() == [("0005",)]


def test_what_the_image_takes_in_is_all_that_runs() -> None:
    """Whatever a module imports of this repository is in the image, and no test or tool is."""
    files = in_the_image()
    modules = [path for path in files if path.suffix == ".py"]
    for room in (path for path in files if path.is_dir()):
        modules += room.rglob("*.py")
    assert {path.name for path in files if path.is_dir()} == {
        *("auth", "engines", "queries", "routes", "migrations")
    }
    own = {path.stem for path in REPOSITORY.glob("*.py")} | {
        path.parent.name for path in REPOSITORY.glob("*/__init__.py")
    }
    imported = set()
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    in_image = {path.stem for path in files if path.suffix == ".py"} | {
        path.name for path in files if path.is_dir()
    }
    assert imported & own <= in_image


def test_compose_stops_no_later_than_the_service() -> None:
    service = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["tasks"]
    (graceful,) = re.findall(r'"--timeout-graceful-shutdown", "(\d+)"', DOCKERFILE)
    assert int(graceful) < int(service["stop_grace_period"].removesuffix("s"))
    assert service["read_only"] is True
