-- Gives sessions free that this connection holds. A statement of its own, after the commit has returned: inside
-- the commit's statement it would show others the row from before it.
-- $1 text[]: session ids. One row a session: whether it was held.
select pg_advisory_unlock(session_lock_key(session_id)) as unlocked from unnest($1::text[]) as session_id;
