-- Locks sessions and reads what their turns need; see the function in migrations/.
-- $1 jsonb: [{"position", "run_id", "session_id", "user_id", "history_runs", "summarized", "request"}]. One row a request: what the function
-- returns, and whether its run is not wanted any more (cancelled). That is read before the lock is taken: what is said
-- later, the worker is told.
select
    claimed.*,
    exists (
        select from cancellations as cancelled
        where cancelled.run_id = request.run_id
          and cancelled.session_id = request.session_id
          and cancelled.user_id is not distinct from request.user_id
    ) as cancelled
from claim_turns($1::jsonb) as claimed
join jsonb_to_recordset($1::jsonb) as request (
    "position" integer, run_id varchar, session_id varchar, user_id varchar
) on request."position" = claimed."position";
