-- Reads what some requests have to know of paused runs; each session's lock is held here.
-- $1 jsonb: [{"position", "session_id", "continues"}]. One row a request: position; session_paused (a run of the session
-- waits for somebody); pause and expires_at of the run that it continues, null where that is not paused. One that is not
-- stored any more is not: another program has deleted its session.
select
    request."position",
    exists (
        select from paused_runs as waiting
        where waiting.session_id = request.session_id
          and waiting.expires_at > clock_timestamp()
          and (select run.session_id from agno_runs as run where run.run_id = waiting.run_id) = waiting.session_id
    ) as session_paused,
    paused.pause,
    paused.expires_at
from jsonb_to_recordset($1::jsonb) as request ("position" integer, session_id varchar, continues varchar)
-- "limit 1" as in claim_turns: each by its index, whatever the planner takes a batch for.
left join lateral (
    select stored.pause, stored.expires_at
    from paused_runs as stored
    where stored.run_id = request.continues
      and stored.session_id = request.session_id
      and (select run.session_id from agno_runs as run where run.run_id = stored.run_id) = stored.session_id
    limit 1
) as paused on true;
