'use strict';
// Fastify + pg as a JavaScript team would write it: response schemas (compiled serializers), a pool of
// 10 connections a worker, named prepared statements, two workers that the primary deals connections to.

const cluster = require('node:cluster');

if (cluster.isPrimary) {
  for (let worker = 0; worker < Number(process.env.WORKERS); worker++) cluster.fork();
  cluster.on('exit', () => process.exit(1));
  process.on('SIGTERM', () => process.exit(0));
} else {
  serve();
}

function serve() {
  const pg = require('pg');
  const fastify = require('fastify')({ logger: false });
  pg.types.setTypeParser(pg.types.builtins.INT8, Number);
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

  const nullable = (type) => ({ type: [type, 'null'] });
  const instant = { type: 'string', format: 'date-time' };
  const input = {
    title: { type: 'string', minLength: 1, maxLength: 200 },
    description: { ...nullable('string'), maxLength: 10000 },
    completed: { type: 'boolean', default: false },
    priority: { enum: ['none', 'low', 'medium', 'high', 'urgent'], default: 'none', type: 'string' },
    due_date: nullable('string'),
    tags: { type: 'array', items: { type: 'string' }, default: [] },
    order: nullable('number'),
  };
  const task = {
    type: 'object',
    properties: {
      id: { type: 'integer' },
      user_id: { type: 'string' },
      ...input,
      completed_at: { ...instant, nullable: true },
      created_at: instant,
      updated_at: instant,
    },
  };
  const params = {
    type: 'object',
    properties: { user: { type: 'string' }, id: { type: 'integer', minimum: 1 } },
  };
  const one = { params, response: { 200: task } };
  const many = { params, response: { 200: { type: 'array', items: task } } };
  const create = {
    params,
    body: { type: 'object', required: ['title'], properties: input },
    response: { 201: task },
  };

  const run = async (name, text, values) => (await pool.query({ name, text, values })).rows;
  const answer = (reply, task) => task ?? reply.code(404).send({ message: 'Task not found' });

  fastify.get('/health', async () => ({ status: 'ok' }));

  fastify.get('/api/:user/tasks', { schema: many }, (request) =>
    run(
      'list',
      'SELECT * FROM task WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1000',
      [request.params.user],
    ));

  fastify.post('/api/:user/tasks', { schema: create }, async (request, reply) => {
    const { title, description, completed, priority, due_date, tags, order } = request.body;
    const rows = await run(
      'create',
      `INSERT INTO task (user_id, title, description, completed, priority, due_date, tags, "order")
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *`,
      [request.params.user, title, description, completed, priority, due_date, tags, order],
    );
    return reply.code(201).send(rows[0]);
  });

  fastify.get('/api/:user/tasks/:id', { schema: one }, async (request, reply) => {
    const { user, id } = request.params;
    const rows = await run('read', 'SELECT * FROM task WHERE user_id = $1 AND id = $2', [user, id]);
    return answer(reply, rows[0]);
  });

  fastify.patch('/api/:user/tasks/:id/complete', { schema: one }, async (request, reply) => {
    const { user, id } = request.params;
    const rows = await run(
      'toggle',
      `UPDATE task SET completed = NOT completed, updated_at = now(),
         completed_at = CASE WHEN completed THEN NULL ELSE now() END
       WHERE user_id = $1 AND id = $2 RETURNING *`,
      [user, id],
    );
    return answer(reply, rows[0]);
  });

  fastify.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
}
