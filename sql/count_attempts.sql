-- Records that some runs are started.
-- $1 jsonb: [{"run_id", "session_id"}], each run once; $2 text: the worker. One row a run: run_id, attempts (how often
-- it was started, as far as recorded).
insert into turn_attempts as attempt (run_id, attempts, session_id, worker)
select started.run_id, 1, started.session_id, $2
from jsonb_to_recordset($1::jsonb) as started (run_id varchar, session_id varchar)
order by started.run_id
on conflict (run_id) do update
set attempts = attempt.attempts + 1, started_at = now(), session_id = excluded.session_id, worker = excluded.worker
returning run_id, attempts;
