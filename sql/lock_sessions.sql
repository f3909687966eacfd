-- Takes the locks of those sessions of which no turn is being executed.
-- $1 text[]: session ids, each once. One row a session that is locked now: session_id.
select session_id from unnest($1::text[]) as session_id where pg_try_advisory_lock(session_lock_key(session_id));
