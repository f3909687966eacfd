-- Lists the sessions whose turns are executed now, as far as their start was recorded (it lasted a moment).
-- One row a session: session_id, worker, client_addr, run_id, attempts, started_at, step (the
-- last that was recorded); the oldest start first.
select
    attempt.session_id,
    regexp_replace(activity.application_name, '^teamturn lane \d+ ', '') as worker,
    activity.client_addr::text as client_addr,
    attempt.run_id,
    attempt.attempts,
    attempt.started_at,
    (
        select step.key from turn_steps as step
        where step.run_id = attempt.run_id and step.seq > 0
        order by step.seq desc
        limit 1
    ) as step
from turn_attempts as attempt
join pg_locks as held
    on held.locktype = 'advisory' and held.objsubid = 1 and held.granted
    and held.database = (select oid from pg_database where datname = current_database())
    and ((held.classid::bigint << 32) | held.objid::bigint) = session_lock_key(attempt.session_id)
join pg_stat_activity as activity on activity.pid = held.pid
where attempt.session_id is not null
order by attempt.started_at, attempt.session_id;
