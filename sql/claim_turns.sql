-- Locks sessions and reads what their turns need; see the function in migrations/.
-- $1 jsonb: [{"position", "run_id", "session_id", "history_runs"}]. One row a request.
select * from claim_turns($1::jsonb);
