-- Gives the steps of paused runs to the runs that go on with them; see the function in migrations/.
-- $1 jsonb: [{"run_id", "request", "session_id", "continues"}]. One row a run for which there was one: run_id.
select run_id from continue_runs($1::jsonb);
