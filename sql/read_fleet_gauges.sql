-- Measures a fleet for its gauges. $1 text: prefix.
-- One row: workers (live ones of the prefix), oldest_turn_seconds (since the oldest turn was started that has no answer;
-- 0: there is none), lock_wait_seconds (the longest that a connection of this database waits for a lock; 0: none does).
select
    (select count(*) from fleet_members($1)) as workers,
    (
        select coalesce(extract(epoch from clock_timestamp() - min(attempt.started_at)), 0)::float8
        from turn_attempts as attempt
    ) as oldest_turn_seconds,
    (
        -- Not by the lock's own database: who waits for a row waits for a transaction, which is of none.
        select coalesce(extract(epoch from clock_timestamp() - min(wanted.waitstart)), 0)::float8
        from pg_locks as wanted
        join pg_stat_activity as waiting on waiting.pid = wanted.pid and waiting.datname = current_database()
        where not wanted.granted
    ) as lock_wait_seconds;
