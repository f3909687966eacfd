-- Begins further attempts of runs, and returns what the earlier ones left; see the function in migrations/.
-- $1 jsonb: [{"run_id", "session_id", "request", "outlived"}], each run once; $2 text: the worker. One row a run: run_id, attempts (this start
-- included), steps, records, history.
select run_id, attempts, steps, records, history from begin_attempts($1::jsonb, $2);
