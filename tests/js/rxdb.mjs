// RxDB's replication, unmodified, with the code of docs/live.md, which stands before this.
import { deepEqual, equal } from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource as Source } from "eventsource";
import { createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";

const opened = [];
globalThis.EventSource = class extends Source {
  constructor(url) {
    super(url);
    opened.push(url);
  }
};
const schema = {
  version: 0,
  primaryKey: "uid",
  type: "object",
  properties: {
    uid: { type: "string", maxLength: 64 },
    title: { type: "string" },
    completed: { type: "boolean" },
    etag: { type: "string" },
  },
};

async function until(condition, what) {
  for (let tries = 0; tries < 600; tries++) {
    if (await condition()) return;
    await sleep(50);
  }
  throw new Error(`not in time: ${what}`);
}

async function device(name) {
  const database = await createRxDatabase({ name, storage: getRxStorageMemory(), multiInstance: false });
  const { tasks } = await database.addCollections({ tasks: { schema, conflictHandler } });
  const replication = await replicate(tasks);
  const titles = async () => (await tasks.find().exec()).map((task) => task.title).sort();
  return { database, tasks, replication, titles };
}
const list = async () => (await call("GET", "?sort=title")).data;
const onServer = async () => (await list()).map((task) => task.title);

// pull what is there; push what is made here, with an id made here
await call("POST", "", { title: "there" });
const a = await device("a");
deepEqual(await a.titles(), ["there"]);
const made = await a.tasks.insert({ uid: crypto.randomUUID(), title: "made on a", completed: false, etag: "" });
await until(async () => (await onServer()).includes("made on a"), "a create is pushed");
equal((await call("GET", `/${made.uid}`)).data.title, "made on a");

// live: another device, and another client of the API
const b = await device("b");
deepEqual(await b.titles(), ["made on a", "there"]);
equal(opened.at(-1).split("since=")[1], String((await call("GET", "/changes")).data.position)); // not all anew
await call("POST", "", { title: "by the API" });
for (const each of [a, b]) {
  await until(async () => (await each.titles()).includes("by the API"), "a change is told");
}
const onB = () => b.tasks.findOne(made.uid).exec();
await (await a.tasks.findOne(made.uid).exec()).patch({ completed: true });
await until(async () => (await onB()).completed, "an update comes from a to b");

// deletes go both ways, and for good
await (await b.tasks.findOne({ selector: { title: "there" } }).exec()).remove();
await until(async () => !(await onServer()).includes("there"), "a delete is pushed");
await until(async () => !(await a.titles()).includes("there"), "a delete is told");
const [gone] = (await list()).filter((task) => task.title === "by the API");
await call("DELETE", `/${gone.id}?forever=true`);
for (const each of [a, b]) {
  await until(async () => !(await each.titles()).includes("by the API"), "a purge is told");
}

// a conflict made offline: each field keeps what was changed last where it was changed
await b.replication.pause();
await (await onB()).patch({ title: "renamed on b" });
await call("PATCH", `/${made.uid}`, { title: "renamed there", completed: false });
await until(async () => (await a.titles()).includes("renamed there"), "the change is on a");
await b.replication.start();
for (const each of [a, b]) {
  await until(async () => (await each.titles()).includes("renamed on b"), "it is settled");
  await until(async () => !(await each.tasks.findOne(made.uid).exec()).completed, "field by field");
}
deepEqual((await list()).map(({ title, completed }) => [title, completed]), [["renamed on b", false]]);

// many changes in a row, each before the last one's answer is back
for (let number = 0; number < 20; number++) {
  await (await a.tasks.findOne(made.uid).exec()).incrementalPatch({ title: `edit ${number}` });
}
await until(async () => (await onServer())[0] === "edit 19", "the last edit is there");
await until(async () => (await b.titles())[0] === "edit 19", "and on b");

// what was changed here while it was deleted there is deleted
await b.replication.pause();
await (await onB()).patch({ title: "too late" });
await call("DELETE", `/${made.uid}`);
await b.replication.start();
await until(async () => (await b.titles()).length === 0, "a delete wins");
deepEqual(await onServer(), []);
for (const each of [a, b]) await each.database.close();
