-- Reads what the summaries of some sessions lack; see the function in migrations/.
-- $1 jsonb: [{"position", "session_id", "after"}]; $2 bigint: how many runs of each at most; $3 bigint: of its last so
-- many; $4 bigint: of so many bytes at most. One row a session that exists: position, summary, runs, run_indexes.
select "position", summary, runs, run_indexes from runs_to_summarize($1::jsonb, $2, $3, $4);
