// react-admin's data provider for json-server, unmodified, against the tasks of a user who has none.
// node ra_data_json_server.mjs http://127.0.0.1:8000/api/somebody
import { deepEqual, equal, rejects } from "node:assert/strict";
import jsonServerProvider from "ra-data-json-server";

const provider = jsonServerProvider(process.argv[2]);
const titles = ({ data }) => data.map((task) => task.title).join(" ");
const list = (filter = {}, sort = { field: "order", order: "ASC" }, page = 1, perPage = 25) =>
  provider.getList("tasks", { filter, sort, pagination: { page, perPage } });

const empty = await list();
deepEqual([empty.data, empty.total], [[], 0]);

const priorities = ["urgent", "none", "high", "low", "medium"];
const created = [];
for (const [place, priority] of priorities.entries()) {
  const data = { title: `task-${place}`, priority, order: place, due_date: "" };
  created.push((await provider.create("tasks", { data })).data);
}
const ids = created.map((task) => task.id);
equal(new Set(ids).size, 5);
deepEqual(created.map((task) => task.due_date), Array(5).fill(null));

// getList: pages, totals, sorts, filters
const second = await list({}, { field: "id", order: "ASC" }, 2, 2);
deepEqual([titles(second), second.total], ["task-2 task-3", 5]);
const last = await list({}, { field: "id", order: "ASC" }, 3, 2);
deepEqual([titles(last), last.total], ["task-4", 5]);
const beyond = await list({}, { field: "id", order: "ASC" }, 9, 2);
deepEqual([beyond.data, beyond.total], [[], 5]);
equal(titles(await list({}, { field: "priority", order: "DESC" })), "task-0 task-2 task-4 task-3 task-1");
equal(titles(await list({}, { field: "title", order: "DESC" })), "task-4 task-3 task-2 task-1 task-0");
equal(titles(await list({ q: "TASK-3" })), "task-3");
equal(titles(await list({ q: "" })), "task-0 task-1 task-2 task-3 task-4");
equal(titles(await list({ priority: ["low", "high"] })), "task-2 task-3");
equal(titles(await list({ priority_gte: "medium", completed: false })), "task-0 task-2 task-4");
equal(titles(await list({ title_ne: "task-0", id_lte: ids[2] })), "task-1 task-2");
await rejects(list({ prioritee: "low" }), /prioritee/);

// getOne, getMany, getManyReference
deepEqual((await provider.getOne("tasks", { id: ids[3] })).data, created[3]);
await rejects(provider.getOne("tasks", { id: 2 ** 53 - 1 }), { status: 404 });
const many = await provider.getMany("tasks", { ids: [ids[4], ids[0]] });
deepEqual(new Set(many.data.map((task) => task.id)), new Set([ids[4], ids[0]]));
const referring = await provider.getManyReference("tasks", {
  target: "user_id",
  id: created[0].user_id,
  filter: { priority_ne: "none" },
  sort: { field: "id", order: "DESC" },
  pagination: { page: 1, perPage: 3 },
});
deepEqual([titles(referring), referring.total], ["task-4 task-3 task-2", 4]);
const foreign = await provider.getManyReference("tasks", {
  target: "user_id",
  id: "somebody else",
  filter: {},
  sort: { field: "id", order: "ASC" },
  pagination: { page: 1, perPage: 3 },
});
deepEqual([foreign.data, foreign.total], [[], 0]);

// update: react-admin sends back the whole record
const due = new Date(Date.UTC(2026, 10, 21, 10, 0, 0, 123)).toISOString();
const edited = { ...created[1], title: "edited", due_date: due };
const updated = (await provider.update("tasks", { id: ids[1], data: edited, previousData: created[1] })).data;
deepEqual(
  { ...updated, updated_at: created[1].updated_at, etag: created[1].etag },
  { ...edited, due_date: "2026-11-21T10:00:00.123000Z" },
);
equal(new Date(updated.due_date).toISOString(), due);
deepEqual((await provider.getOne("tasks", { id: ids[1] })).data, updated);
await rejects(
  provider.update("tasks", { id: ids[1], data: { title: "" }, previousData: updated }),
  { status: 422, message: /title/ },
);

// updateMany, delete, deleteMany
const pair = ids.slice(0, 2);
deepEqual((await provider.updateMany("tasks", { ids: pair, data: { completed: true } })).data, pair);
equal(titles(await list({ completed: true })), "task-0 edited");
const gone = (await provider.delete("tasks", { id: ids[0], previousData: created[0] })).data;
deepEqual([gone.id, gone.completed], [ids[0], true]);
deepEqual((await provider.deleteMany("tasks", { ids: ids.slice(1, 3) })).data, ids.slice(1, 3));
const left = await list();
deepEqual([titles(left), left.total], ["task-3 task-4", 2]);
