-- Reads what some requests have to know of paused runs; each session's lock is held here.
-- $1 jsonb: [{"position", "session_id", "continues"}]. One row a request: position; session_paused (a run of the session
-- waits for somebody); pause and expires_at of the run that it continues, null where that is not paused.
select
    request."position",
    exists (
        select from paused_runs as waiting
        where waiting.session_id = request.session_id and waiting.expires_at > clock_timestamp()
    ) as session_paused,
    paused.pause,
    paused.expires_at
from jsonb_to_recordset($1::jsonb) as request ("position" integer, session_id varchar, continues varchar)
left join paused_runs as paused on paused.run_id = request.continues and paused.session_id = request.session_id;
