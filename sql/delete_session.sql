-- Deletes a session with its runs, and what its paused runs hold; whoever runs this holds its lock.
-- $1 text: session_id. One row if there was one.
with paused as (
    delete from paused_runs where session_id = $1
    returning coalesce(continued_by, run_id) as run_id, coalesce(continued_request, request) as request
),
steps as (
    delete from turn_steps as step using paused
    where step.run_id = paused.run_id and step.request = paused.request
)
delete from agno_sessions where session_id = $1 returning session_id;
