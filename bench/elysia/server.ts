// Elysia on Bun as its guides show it: a TypeBox schema of what comes in, Bun's own PostgreSQL client
// (10 connections a worker, prepared statements), workers that share the port. A schema of what goes out
// would cost a sixth.

import cluster from 'node:cluster';
import { SQL } from 'bun';
import { Elysia, status, t } from 'elysia';

if (cluster.isPrimary) {
  for (let worker = 0; worker < Number(process.env.WORKERS); worker++) cluster.fork();
  cluster.on('exit', () => process.exit(1));
  process.on('SIGTERM', () => process.exit(0));
} else {
  serve();
}

function serve() {
  const sql = new SQL(process.env.DATABASE_URL!, { max: 10 });

  const params = t.Object({ user: t.String(), id: t.Integer({ minimum: 1 }) });
  const body = t.Object({
    title: t.String({ minLength: 1, maxLength: 200 }),
    description: t.Optional(t.Nullable(t.String({ maxLength: 10000 }))),
    completed: t.Boolean({ default: false }),
    priority: t.UnionEnum(['none', 'low', 'medium', 'high', 'urgent'], { default: 'none' }),
    due_date: t.Optional(t.Nullable(t.String())),
    tags: t.Array(t.String(), { default: [] }),
    order: t.Optional(t.Nullable(t.Number())),
  });

  type Row = { id: number | string };
  const numbered = (tasks: Row[]) => {
    for (const task of tasks) task.id = Number(task.id); // the client reads a bigint as a string
    return tasks;
  };
  const answer = (tasks: Row[]) => numbered(tasks)[0] ?? status(404, { message: 'Task not found' });

  new Elysia()
    .get('/health', { status: 'ok' })
    .get(
      '/api/:user/tasks',
      async ({ params: { user } }) =>
        numbered(await sql`
          SELECT * FROM task WHERE user_id = ${user} ORDER BY created_at DESC, id DESC LIMIT 1000`),
    )
    .post(
      '/api/:user/tasks',
      async ({ params: { user }, body: task }) => {
        const [created] = numbered(await sql`
          INSERT INTO task (user_id, title, description, completed, priority, due_date, tags, "order")
          VALUES (${user}, ${task.title}, ${task.description}, ${task.completed}, ${task.priority},
            ${task.due_date}, ${sql.array(task.tags, 'TEXT')}, ${task.order}) RETURNING *`);
        return status(201, created);
      },
      { body },
    )
    .get(
      '/api/:user/tasks/:id',
      async ({ params: { user, id } }) =>
        answer(await sql`SELECT * FROM task WHERE user_id = ${user} AND id = ${id}`),
      { params },
    )
    .patch(
      '/api/:user/tasks/:id/complete',
      async ({ params: { user, id } }) =>
        answer(await sql`
          UPDATE task SET completed = NOT completed, updated_at = now(),
            completed_at = CASE WHEN completed THEN NULL ELSE now() END
          WHERE user_id = ${user} AND id = ${id} RETURNING *`),
      { params },
    )
    .listen({ hostname: '127.0.0.1', port: Number(process.env.PORT), reusePort: true });
}
