-- Stores summaries of sessions; see the function in migrations/.
-- $1 jsonb: [{"session_id", "summary", "up_to", "usage"}], each session once. One row, empty.
select store_summaries($1::jsonb);
