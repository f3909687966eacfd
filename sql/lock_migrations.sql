-- Lets one program at a time migrate a schema: tries to take the lock, which is the connection's until it is given back.
-- $1 text: schema. One row: whether it is taken. Nobody waits within the statement: what builds an index concurrently
-- waits for every statement that has begun.
select pg_try_advisory_lock(hashtextextended('teamturn.migrate ' || $1, 0));
