-- Stores which requests join the turns of some others, and returns what they ask; see the function in migrations/.
-- $1 jsonb: [{"position", "run_id", "session_id", "user_id", "request", "candidates"}], each run once; $2 bytea[]: what the candidates ask,
-- by number from 1. One row a turn: position, joined, cancelled.
select "position", joined, cancelled from coalesce_runs($1::jsonb, $2::bytea[]);
