-- Lists sessions, newest activity first.
-- $1 integer: how many at most. One row a session: session_id, session_type, target_id, user_id, name, runs
-- (members' runs not counted), created_at, updated_at.
select
    session.session_id,
    session.session_type,
    coalesce(session.team_id, session.agent_id, session.workflow_id) as target_id,
    session.user_id,
    session.session_data ->> 'session_name' as name,
    (
        select count(*) from agno_runs as run
        where run.session_id = session.session_id and run.parent_run_id is null
    ) + (
        select count(*) from agno_2_runs(session.session_id) as old where old.run_data ->> 'parent_run_id' is null
    ) as runs,
    session.created_at,
    session.updated_at
from agno_sessions as session
order by coalesce(session.updated_at, session.created_at) desc, session.session_id
limit $1;
