"""The clients of docs/live.md as npm delivers them, run with the code that the page shows."""

import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.contract.test_readme import ADDRESS, EVENT_SOURCE, SYNCS, block, bundle
from tests.support.browser import Chromium, Site
from tests.support.node import JS, node
from tests.support.processes import wait_until
from tests.support.service import Service

# What a package that is no module asks for, esbuild cannot know before.
REQUIRE = "import{createRequire}from'node:module';const require=createRequire(import.meta.url);"


@pytest.mark.parametrize("name", SYNCS)
def test_a_client_syncs_unmodified(name: str, service: Service, user: str, tmp_path: Path) -> None:
    shown = block(SYNCS[name]).replace(f"{ADDRESS}/api", f"{service.url}/api/{user}")
    (tmp_path / "app.js").write_text(shown + (JS / f"{name}.mjs").read_text())
    options = ["--platform=node", "--format=esm", f"--banner:js={REQUIRE}"]
    bundle(tmp_path, "app.js", "bundle.mjs", *options)
    command = [node(), "bundle.mjs"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_page_shows_what_others_change(service: Service, user: str, tmp_path: Path) -> None:
    shown = block(EVENT_SOURCE).replace(f"{ADDRESS}/api", f"{service.url}/api/{user}")
    (tmp_path / "index.html").write_text(f"<!doctype html><body><script>{shown}</script>")
    with (
        Site(tmp_path) as site,
        Chromium() as browser,
        browser.open(site.url) as page,
        httpx2.Client(base_url=f"{service.url}/api/{user}", trust_env=False) as client,
    ):

        def shows(text: str) -> None:
            wait_until(lambda: page.evaluate("document.body.textContent") == text, f"“{text}”")

        first = client.post("/tasks", json={"title": "first"}).json()
        shows("first")
        client.post("/tasks", json={"title": "second"})
        shows("first, second")
        client.patch(f"/tasks/{first['id']}", json={"title": "renamed"})
        shows("renamed, second")
        client.delete(f"/tasks/{first['id']}")
        shows("second")
