// Refine's data provider for plain REST, unmodified, against the tasks of a user who has none.
// node refine_simple_rest.mjs http://127.0.0.1:8000/api/somebody
import { deepEqual, equal, rejects } from "node:assert/strict";
import dataProvider from "@refinedev/simple-rest";

const provider = dataProvider(process.argv[2]);
const resource = "tasks";
const titles = ({ data }) => data.map((task) => task.title).join(" ");
const where = (field, operator, value) => ({ field, operator, value });
const by = (field, order) => ({ field, order });
const list = (options) => provider.getList({ resource, ...options });

const empty = await list();
deepEqual([empty.data, empty.total], [[], 0]);

const created = [];
for (const [place, priority] of ["urgent", "none", "high", "low", "medium"].entries()) {
  const variables = { title: `task-${place}`, priority, order: place };
  created.push((await provider.create({ resource, variables })).data);
}
const ids = created.map((task) => task.id);
equal(new Set(ids).size, 5);

// getList: pages, totals, sorts, filters
const pages = [];
for (const currentPage of [1, 2, 3]) {
  pages.push(await list({ pagination: { currentPage, pageSize: 2 }, sorters: [by("id", "asc")] }));
}
deepEqual(pages.map(titles), ["task-0 task-1", "task-2 task-3", "task-4"]);
deepEqual(pages.map((page) => page.total), [5, 5, 5]);
equal((await list({ pagination: { currentPage: 9, pageSize: 2 } })).total, 5);
const whole = await list({ pagination: { mode: "off" } });
deepEqual([titles(whole), whole.total], ["task-4 task-3 task-2 task-1 task-0", 5]);

const filtered = async (...filters) => titles(await list({ filters, sorters: [by("id", "asc")] }));
equal(await filtered(where("title", "contains", "SK-3")), "task-3");
equal(await filtered(where("q", "contains", "task-2")), "task-2");
equal(await filtered(where("completed", "eq", true)), "");
equal(await filtered(where("priority", "gte", "medium"), where("title", "ne", "task-0")), "task-2 task-4");
equal(await filtered(where("priority", "lte", "low")), "task-1 task-3");
equal(await filtered(where("priority", "in", ["low", "high"])), "task-2 task-3");
equal(await filtered(where("id", "eq", ids[2])), "task-2");
await rejects(filtered(where("priority", "gt", "most")), { statusCode: 422, message: /priority/ });
const ranked = { sorters: [by("completed", "asc"), by("priority", "desc")] };
equal(titles(await list(ranked)), "task-0 task-2 task-4 task-3 task-1");

// getOne, getMany; what Refine calls a reference is a filter
deepEqual((await provider.getOne({ resource, id: ids[3] })).data, created[3]);
await rejects(provider.getOne({ resource, id: 2 ** 53 - 1 }), { statusCode: 404 });
const many = await provider.getMany({ resource, ids: [ids[4], ids[0]] });
deepEqual(new Set(many.data.map((task) => task.id)), new Set([ids[4], ids[0]]));
const referring = await list({
  filters: [where("user_id", "eq", created[0].user_id)],
  pagination: { currentPage: 1, pageSize: 2 },
});
deepEqual([referring.data.length, referring.total], [2, 5]);

// update (PATCH, or PUT where the app says so); many of them as Refine does it where a provider has no updateMany
const renamed = (await provider.update({ resource, id: ids[1], variables: { title: "renamed" } })).data;
deepEqual([renamed.title, renamed.order], ["renamed", 1]);
const meta = { method: "put" };
const put = (await provider.update({ resource, id: ids[1], variables: { order: 9 }, meta })).data;
deepEqual([put.title, put.order], ["renamed", 9]);
const variables = { completed: true };
await Promise.all(ids.slice(0, 2).map((id) => provider.update({ resource, id, variables })));
equal(await filtered(where("completed", "eq", true)), "task-0 renamed");
await rejects(provider.update({ resource, id: ids[1], variables: { title: "" } }), {
  statusCode: 422,
  message: /title/,
});

// deleteOne, with and without a body; many of them as Refine does it
equal((await provider.deleteOne({ resource, id: ids[0] })).data.title, "task-0");
await Promise.all(ids.slice(1, 3).map((id) => provider.deleteOne({ resource, id, variables: {} })));
const left = await list({ sorters: [by("id", "asc")] });
deepEqual([titles(left), left.total], ["task-3 task-4", 2]);
