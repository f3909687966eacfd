-- Names a session. It needs no lock: a turn that runs meanwhile keeps the name. $1 text: session_id; $2 text: the name.
-- One row if there is such a session.
update agno_sessions
set session_data = merge_session_data(session_data, null, $2, null)
where session_id = $1
returning session_id;
