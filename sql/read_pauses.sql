-- Reads what some requests have to know of paused runs; each session's lock is held here.
-- $1 jsonb: [{"position", "session_id", "continues"}]. One row a request: position; session_paused (a run of the session
-- waits for somebody); pause and expires_at of the run that it continues, null where that is not paused. One that is not
-- stored any more is not: another program has deleted its session.
select
    request."position",
    exists (
        select from paused_runs as waiting
        join agno_runs as run on run.run_id = waiting.run_id and run.session_id = waiting.session_id
        where waiting.session_id = request.session_id and waiting.expires_at > clock_timestamp()
    ) as session_paused,
    paused.pause,
    paused.expires_at
from jsonb_to_recordset($1::jsonb) as request ("position" integer, session_id varchar, continues varchar)
left join paused_runs as paused
    on paused.run_id = request.continues and paused.session_id = request.session_id
    and exists (select from agno_runs as run where run.run_id = paused.run_id and run.session_id = paused.session_id);
