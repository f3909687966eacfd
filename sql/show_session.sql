-- Reads one session in its documented columns, but for the runs. $1 text: session_id. No row if there is none.
select
    session_id, session_type, agent_id, team_id, workflow_id, user_id, session_data, agent_data,
    team_data, workflow_data, metadata, summary, created_at, updated_at
from agno_sessions
where session_id = $1;
