"""Clients of the Model Context Protocol, unmodified, against the live service."""

import asyncio
import subprocess
from typing import Any

import httpx2
import pytest
from mcp import MCPError
from mcp.client import Client
from mcp.client.client import ConnectMode

from tests.support.node import JS, node
from tests.support.service import Service


@pytest.mark.parametrize(
    ("package", "mode"),
    [
        ("@modelcontextprotocol/sdk", ""),
        ("@modelcontextprotocol/client", "legacy"),
        ("@modelcontextprotocol/client", "auto"),
        ("@modelcontextprotocol/client", "2026-07-28"),
    ],
)
def test_a_client_under_node_does_a_tasks_whole_life(
    package: str, mode: str, service: Service, user: str
) -> None:
    command = [node(), "mcp_client.mjs", package, service.url, user, *filter(None, [mode])]
    result = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])
def test_the_python_client_does_a_tasks_whole_life(
    mode: ConnectMode, service: Service, client: httpx2.Client, user: str, tasks: str
) -> None:
    async def live() -> None:
        async with Client(f"{service.url}/mcp", mode=mode) as agent:

            async def use(tool: str, **arguments: Any) -> Any:
                result = await agent.call_tool(tool, {"user_id": user, **arguments})
                assert not result.is_error, result
                return result.structured_content

            listed = await agent.list_tools()
            assert len(listed.tools) == 6
            task = await use("add_task", title="Buy milk", tags=["shop"])
            assert client.get(tasks).json() == [task]
            assert await use("get_task", task_id=task["id"]) == task
            await use("update_task", task_id=task["id"], priority="high")
            await use("complete_task", task_id=str(task["id"]))
            done = client.get(task["url"]).json()
            assert (done["priority"], done["completed"]) == ("high", True)
            assert await use("list_tasks", status="completed", tag=["shop"]) == {"tasks": [done]}
            bad = await agent.call_tool("update_task", {"task_id": task["id"], "user_id": user,
                                                        "title": ""})  # fmt: skip
            assert bad.is_error
            other = {"task_id": task["id"], "user_id": f"not-{user}"}
            assert (await agent.call_tool("get_task", other)).is_error
            await use("delete_task", task_id=task["id"])
            assert client.get(task["url"]).status_code == 404
            with pytest.raises(MCPError, match="add_task"):
                await agent.call_tool("nothing", {})

    asyncio.run(live())
