-- Records that some runs are started.
-- $1 text[]: run_ids, each once. One row a run: run_id, attempts (how often it was started, as far as recorded).
insert into turn_attempts as attempt (run_id, attempts)
select run_id, 1 from unnest($1::text[]) as run_id order by run_id
on conflict (run_id) do update set attempts = attempt.attempts + 1, started_at = now()
returning run_id, attempts;
