-- Records that runs are not wanted any more; see the function in migrations/.
-- $1 jsonb: [{"run_id", "session_id", "user_id"}]. One row, empty.
select cancel_runs($1::jsonb);
