-- Reads what the summaries of some sessions lack; see the function in migrations/.
-- $1 jsonb: [{"position", "session_id"}]; $2 bigint: how many runs of each at most. One row a session that exists:
-- position, summary, runs, up_to.
select "position", summary, runs, up_to from runs_to_summarize($1::jsonb, $2);
