// Every operation through the client that openapi-fetch makes of the generated types. It has to
// compile under `tsc --strict`, and then to work: node typed_client.js BASE_URL USER
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Task = components["schemas"]["Task"];
declare const process: { argv: [string, string, string, string] };

const [, , baseUrl, user_id] = process.argv;
const client = createClient<paths>({ baseUrl });
const tag = user_id; // what tells our tasks from others under the current user

function ok<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

function same(found: unknown, expected: unknown): void {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`);
  }
}

async function ofTheCurrentUser(): Promise<void> {
  const created = await client.POST("/api/tasks", {
    params: { header: { "Idempotency-Key": tag } },
    body: { title: "typed", priority: "high", due_date: "2026-11-21", tags: [tag] },
  });
  const task: Task = ok(created);
  const path = { id: task.id };
  const etag = created.response.headers.get("ETag")!;

  const listed = await client.GET("/api/tasks", {
    params: {
      query: { tag: [tag], status: "pending", priority: ["high", "urgent"], title_like: "type" },
    },
  });
  same(ok(listed).map((each) => each.id), [task.id]);
  same(listed.response.headers.get("X-Total-Count"), "1");
  same(ok(await client.GET("/api/tasks/stats", { params: { query: { tag: [tag] } } })).total, 1);
  const news = ok(await client.GET("/api/tasks/changes", { params: { query: { limit: 1000 } } }));
  same(news.changes.some((each) => each.id === task.id && !("gone" in each)), !news.more);
  same(ok(await client.GET("/api/tasks/{id}", { params: { path: { id: task.uid } } })).id, task.id);
  same(ok(await client.GET("/api/tasks/{id}", { params: { path } })), task);
  const unchanged = await client.GET("/api/tasks/{id}", {
    params: { path, header: { "If-None-Match": etag } },
  });
  same(unchanged.response.status, 304);

  // The whole record may go back as it came.
  const put = await client.PUT("/api/tasks/{id}", { params: { path }, body: { ...task, order: 1.5 } });
  same(ok(put).order, 1.5);
  const patch = { params: { path, header: { "If-Match": etag } }, body: { title: "too late" } };
  const { error, response } = await client.PATCH("/api/tasks/{id}", patch);
  same([response.status, error?.status, error?.errors], [412, 412, []]);
  const detail: string | undefined = error?.detail;
  same(typeof detail, "string");

  const toggled = ok(await client.PATCH("/api/tasks/{id}/complete", { params: { path } }));
  same(toggled.completed, true);
  const set = { params: { path }, body: { completed: true } };
  same(ok(await client.PATCH("/api/tasks/{id}/complete", set)).completed, true);
  const all = { params: { query: { tag: [tag], id: [task.id] } } };
  same(ok(await client.PATCH("/api/tasks", { ...all, body: { due_date: null } })), { updated: 1 });
  same(ok(await client.DELETE("/api/tasks/{id}", { params: { path } })).due_date, null);
  same(ok(await client.DELETE("/api/tasks", all)), { deleted: 0 });
}

async function ofAUser(): Promise<void> {
  const whose = { path: { user_id } };
  const { id } = ok(await client.POST("/api/{user_id}/tasks", { params: whose, body: { title: "typed" } }));
  const which = { params: { path: { user_id, id } } };
  const change = { ...which, body: { title: "changed" } };
  same(ok(await client.GET("/api/{user_id}/tasks", { params: whose })).length, 1);
  same(ok(await client.GET("/api/{user_id}/tasks/stats", { params: whose })).pending, 1);
  same(ok(await client.GET("/api/{user_id}/tasks/changes", { params: whose })).position, 2);
  same(ok(await client.GET("/api/{user_id}/tasks/{id}", which)).user_id, user_id);
  same(ok(await client.PUT("/api/{user_id}/tasks/{id}", change)).title, "changed");
  same(ok(await client.PATCH("/api/{user_id}/tasks/{id}", change)).title, "changed");
  same(ok(await client.PATCH("/api/{user_id}/tasks/{id}/complete", which)).completed, true);
  same(ok(await client.DELETE("/api/{user_id}/tasks/{id}", which)).id, id);
  const rest = { params: whose, body: { completed: false } };
  same(ok(await client.PATCH("/api/{user_id}/tasks", rest)), { updated: 0 });
  same(ok(await client.DELETE("/api/{user_id}/tasks", { params: whose })), { deleted: 0 });
}

async function theTypesRefuse(): Promise<void> {
  const refused = [
    // @ts-expect-error a misspelt field
    await client.POST("/api/tasks", { body: { titel: "typed" } }),
    // @ts-expect-error no title
    await client.POST("/api/tasks", { body: {} }),
    // @ts-expect-error a word that is no priority
    await client.POST("/api/tasks", { body: { title: "typed", priority: "huge" } }),
    // @ts-expect-error a misspelt filter
    await client.DELETE("/api/tasks", { params: { query: { statuss: "completed" } } }),
  ];
  same(refused.map((each) => each.response.status), [422, 422, 422, 422]);
}

same(ok(await client.GET("/health")).status, "ok");
same(ok(await client.GET("/ready")).status, "ok");
await ofTheCurrentUser();
await ofAUser();
await theTypesRefuse();
console.log("every operation works");
