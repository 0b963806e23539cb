// WatermelonDB's sync, unmodified, on its LokiJS adapter, with the code of docs/live.md before this.
import { deepEqual, equal, rejects } from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { appSchema, Database, Model, tableSchema } from "@nozbe/watermelondb";
import LokiJSAdapter from "@nozbe/watermelondb/adapters/lokijs";
import { hasUnsyncedChanges } from "@nozbe/watermelondb/sync";
import { EventSource } from "eventsource";
import Loki from "lokijs";

globalThis.EventSource = EventSource;
const columns = [
  { name: "title", type: "string" },
  { name: "completed", type: "boolean" },
  { name: "etag", type: "string" },
];
const schema = appSchema({ version: 1, tables: [tableSchema({ name: "tasks", columns })] });

class Task extends Model {
  static table = "tasks";
  get title() {
    return this._getRaw("title");
  }
  get completed() {
    return this._getRaw("completed");
  }
  set(values) {
    return this.database.write(() =>
      this.update(() => Object.entries(values).forEach(([name, value]) => this._setRaw(name, value))),
    );
  }
}

function device(dbName) {
  const memory = new Loki.LokiMemoryAdapter();
  const adapter = new LokiJSAdapter({
    schema,
    dbName,
    useWebWorker: false,
    useIncrementalIndexedDB: false,
    extraLokiOptions: { adapter: memory },
  });
  const database = new Database({ adapter, modelClasses: [Task] });
  const tasks = database.get("tasks");
  const titles = async () => (await tasks.query().fetch()).map((task) => task.title).sort();
  const create = (title) =>
    database.write(() =>
      tasks.create((task) => Object.entries({ title, completed: false }).forEach(([name, value]) => task._setRaw(name, value))),
    );
  const named = async (title) => (await tasks.query().fetch()).find((task) => task.title === title);
  return { database, titles, create, named };
}

async function until(condition, what) {
  for (let tries = 0; tries < 600; tries++) {
    if (await condition()) return;
    await sleep(50);
  }
  throw new Error(`not in time: ${what}`);
}
const list = () => call("GET", "?sort=title");
const onServer = async () => (await list()).map((task) => task.title);

// pull what is there; push what is made here, with the id made here
await call("POST", "", { title: "there" });
const a = device("a");
const made = await a.create("made on a");
await sync(a.database);
deepEqual(await a.titles(), ["made on a", "there"]);
deepEqual(await onServer(), ["made on a", "there"]);
equal((await call("GET", `/${made.id}`)).title, "made on a");
await sync(a.database);
equal(await hasUnsyncedChanges({ database: a.database }), false);

// live, from another device and from another client of the API
const b = device("b");
const source = follow(b.database);
await until(async () => (await b.titles()).length === 2, "all comes to b");
await (await a.named("made on a")).set({ completed: true });
await sync(a.database);
await until(async () => (await b.named("made on a")).completed, "an update comes to b");
await call("POST", "", { title: "by the API" });
await until(async () => (await b.titles()).includes("by the API"), "a create comes to b");
source.close();
await sync(b.database);

// deletes go both ways, and for good
await b.database.write(async () => (await b.named("there")).markAsDeleted());
await sync(b.database);
deepEqual(await onServer(), ["by the API", "made on a"]);
const [gone] = await list();
await call("DELETE", `/${gone.id}?forever=true`);
for (const each of [a, b]) {
  await sync(each.database);
  deepEqual(await each.titles(), ["made on a"]);
}

// a conflict made offline: what was changed here stays, the rest is the server's
await (await b.named("made on a")).set({ title: "renamed on b" });
await call("PATCH", `/${made.id}`, { title: "renamed there", completed: false });
await sync(b.database);
await sync(a.database);
for (const each of [a, b]) {
  deepEqual(await each.titles(), ["renamed on b"]);
  equal((await each.named("renamed on b")).completed, false);
}
deepEqual((await list()).map(({ title, completed }) => [title, completed]), [["renamed on b", false]]);

// a change that comes between pull and push is not lost: the push is refused, the next sync merges
await (await a.named("renamed on b")).set({ title: "renamed on a" });
const fetched = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  if (options.method === "PATCH") {
    globalThis.fetch = fetched;
    await call("PATCH", `/${made.id}`, { completed: true });
  }
  return fetched(url, options);
};
await rejects(sync(a.database), /has changed since/);
await sync(a.database);
deepEqual((await list()).map(({ title, completed }) => [title, completed]), [["renamed on a", true]]);

// a create whose answer is lost, and which is changed before the next try, is there once
const lost = await a.create("lost");
globalThis.fetch = async (url, options) => {
  const answer = await fetched(url, options);
  if (options.method !== "POST") return answer;
  globalThis.fetch = fetched;
  throw new TypeError("the connection broke");
};
await rejects(sync(a.database), /the connection broke/);
await lost.set({ title: "found" });
await sync(a.database);
deepEqual([await onServer(), await a.titles()], [["found", "renamed on a"], ["found", "renamed on a"]]);
await call("DELETE", `/${lost.id}`);

// what was changed here while it was deleted there is deleted
await sync(b.database);
await (await b.named("renamed on a")).set({ title: "too late" });
await call("DELETE", `/${made.id}`);
await sync(b.database);
deepEqual([await b.titles(), await onServer()], [[], []]);
process.exit(0); // LokiJS keeps a timer
