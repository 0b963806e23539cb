// TanStack DB's query collection, unmodified, with the code of docs/live.md, which stands before this.
import { deepEqual, equal, rejects } from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource } from "eventsource";

globalThis.EventSource = EventSource;

async function until(condition, what) {
  for (let tries = 0; tries < 600; tries++) {
    if (await condition()) return;
    await sleep(50);
  }
  throw new Error(`not in time: ${what}`);
}
const list = () => call("GET", "?sort=title");
const onServer = async () => (await list()).map((task) => task.title);
const titles = () => tasks.toArray.map((task) => task.title).sort();

// pull what is there; what is made here shows at once, and has the id made here
await call("POST", "", { title: "there" });
const source = await follow();
deepEqual(titles(), ["there"]);
const uid = crypto.randomUUID();
const insert = tasks.insert({ uid, title: "made here" });
deepEqual(titles(), ["made here", "there"]);
await insert.isPersisted.promise;
equal((await call("GET", `/${uid}`)).title, "made here");
await until(() => tasks.get(uid).etag, "what the server set is here");

// live: what another client does
const other = await call("POST", "", { title: "by another" });
await until(() => titles().includes("by another"), "a create is told");
await call("PATCH", `/${uid}`, { completed: true });
await until(() => tasks.get(uid).completed, "an update is told");

// updates go there; many in a row, each of the task as it is by then
for (const title of ["first", "second", "third"]) {
  const update = tasks.update(uid, (draft) => void (draft.title = title));
  equal(tasks.get(uid).title, title);
  await update.isPersisted.promise;
  const { etag } = await call("GET", `/${uid}`);
  await until(() => tasks.get(uid).etag === etag, "its new tag is here");
}
deepEqual(await onServer(), ["by another", "there", "third"]);

// deletes go both ways, and for good
const there = tasks.toArray.find((task) => task.title === "there");
await tasks.delete(there.uid).isPersisted.promise;
deepEqual(await onServer(), ["by another", "third"]);
await call("DELETE", `/${other.uid}?forever=true`);
await until(() => titles().join() === "third", "a purge is told");

// a conflict made offline: the server's change stays, the one made here is taken back
source.close();
await call("PATCH", `/${uid}`, { title: "renamed there" });
const late = tasks.update(uid, (draft) => void (draft.title = "renamed here"));
deepEqual(titles(), ["renamed here"]);
await rejects(late.isPersisted.promise, /has changed since/);
const again = await follow();
await until(() => titles().join() === "renamed there", "it is settled");
await tasks.update(uid, (draft) => void (draft.title = "renamed here")).isPersisted.promise;
deepEqual(await onServer(), ["renamed here"]);

// what was changed here while it was deleted there is deleted
again.close();
await call("DELETE", `/${uid}`);
await rejects(tasks.update(uid, (draft) => void (draft.title = "too late")).isPersisted.promise, /There is no task/);
const last = await follow();
await until(() => titles().length === 0, "it is gone here, too");
last.close();
process.exit(0); // the query client keeps timers
