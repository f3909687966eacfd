-- Takes a session's lock, if no turn of it is being executed. $1 text: session_id. One row: locked.
select pg_try_advisory_lock(session_lock_key($1)) as locked;
