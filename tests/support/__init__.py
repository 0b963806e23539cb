"""Real parts for the tests: PostgreSQL, PgBouncer, the service, and a proxy between them."""
