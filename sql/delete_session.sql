-- Deletes a session with its runs; whoever runs this holds its lock. $1 text: session_id. One row if there was one.
delete from agno_sessions where session_id = $1 returning session_id;
