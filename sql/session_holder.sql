-- Tells who holds a session's lock, and which of its runs is executed. $1 text: session_id.
-- No row if nobody does. One row: worker, client_addr, run_id, attempts, started_at (null: it lasted no moment yet),
-- step (the last that was recorded).
select
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
from pg_locks as held
join pg_stat_activity as activity on activity.pid = held.pid
left join lateral (
    select * from turn_attempts as started where started.session_id = $1 order by started.started_at desc limit 1
) as attempt on true
where held.locktype = 'advisory'
  and held.objsubid = 1
  and held.granted
  and held.database = (select oid from pg_database where datname = current_database())
  and ((held.classid::bigint << 32) | held.objid::bigint) = session_lock_key($1);
