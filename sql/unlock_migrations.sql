-- Gives the lock of lock_migrations.sql back. $1 text: schema. One row: whether it was held.
select pg_advisory_unlock(hashtextextended('teamturn.migrate ' || $1, 0));
