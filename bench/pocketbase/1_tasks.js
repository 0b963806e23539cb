// The collection as the dashboard would make it: the fields of the task, the index of the list, open
// to all. With a superuser there, the first start opens no browser.

migrate((app) => {
  const superuser = new Record(app.findCollectionByNameOrId('_superusers'));
  superuser.setEmail('bench@example.com');
  superuser.setRandomPassword();
  app.save(superuser);
  const settings = app.settings();
  settings.logs.maxDays = 0;
  app.save(settings);
  app.save(
    new Collection({
      type: 'base',
      name: 'tasks',
      listRule: '',
      viewRule: '',
      createRule: '',
      updateRule: '',
      fields: [
        { name: 'user_id', type: 'text', required: true },
        { name: 'title', type: 'text', required: true, max: 200 },
        { name: 'description', type: 'text', max: 10000 },
        { name: 'completed', type: 'bool' },
        { name: 'completed_at', type: 'date' },
        {
          name: 'priority',
          type: 'select',
          values: ['none', 'low', 'medium', 'high', 'urgent'],
        },
        { name: 'due_date', type: 'text' },
        { name: 'tags', type: 'json' },
        { name: 'order', type: 'number' },
        { name: 'created_at', type: 'autodate', onCreate: true },
        { name: 'updated_at', type: 'autodate', onCreate: true, onUpdate: true },
      ],
      indexes: ['CREATE INDEX newest ON tasks (user_id, created_at DESC)'],
    }),
  );
});
