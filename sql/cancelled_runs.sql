-- Tells which of some runs are not wanted any more. $1 text[]: run_ids. One row a saying: run_id, session_id, user_id.
select run_id, session_id, user_id from cancellations where run_id = any ($1::text[]);
