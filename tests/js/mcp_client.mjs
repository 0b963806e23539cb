// A client of the Model Context Protocol, unmodified, does a task's whole life for a user who has none.
// node mcp_client.mjs @modelcontextprotocol/sdk|client http://127.0.0.1:8000 somebody
// For the client package a fourth argument says the mode: legacy, auto, or a revision.
import { deepEqual, equal, match, rejects } from "node:assert/strict";

const [name, base, user, mode] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } =
  name === "@modelcontextprotocol/client"
    ? await import(name)
    : {
        ...(await import("@modelcontextprotocol/sdk/client/index.js")),
        ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
      };
const about = { name: "test", version: "1" };
const options = mode && { versionNegotiation: { mode: mode[0] === "2" ? { pin: mode } : mode } };
const client = new Client(about, options);
await client.connect(new StreamableHTTPClientTransport(new URL(`${base}/mcp`)));

const use = async (tool, args) => {
  const answer = await client.callTool({ name: tool, arguments: { user_id: user, ...args } });
  const text = answer.content[0].text;
  if (answer.isError) throw new Error(text);
  deepEqual(JSON.parse(text), answer.structuredContent);
  return answer.structuredContent;
};
const rest = async (path = "") => {
  const answer = await fetch(`${base}/api/${user}/tasks${path}`);
  return answer.ok ? answer.json() : answer.status;
};

const { tools } = await client.listTools();
deepEqual(
  tools.map((tool) => tool.name),
  ["add_task", "list_tasks", "get_task", "update_task", "complete_task", "delete_task"],
);

const task = await use("add_task", { title: "Buy milk", tags: ["shop"] });
deepEqual(await rest(), [{ ...task }]);
deepEqual(await use("get_task", { task_id: task.id }), task);
equal((await use("update_task", { task_id: task.id, priority: "high" })).priority, "high");
equal((await use("complete_task", { task_id: `${task.id}` })).completed, true);
const done = await rest(`/${task.id}`);
deepEqual([done.priority, done.completed], ["high", true]);
deepEqual(await use("list_tasks", { status: "completed", tag: ["shop"] }), { tasks: [done] });
await rejects(use("update_task", { task_id: task.id, title: "" }), /^Error: title: must be 1 to 200/);
await rejects(use("get_task", { task_id: task.id, user_id: `not-${user}` }), /There is no task/);
equal((await use("delete_task", { task_id: task.id })).id, task.id);
equal(await rest(`/${task.id}`), 404);
deepEqual(await rest(), []);
await rejects(client.callTool({ name: "nothing", arguments: {} }), (error) => {
  equal(error.code, -32602);
  return match(error.message, /add_task/) ?? true;
});
await client.close();
