-- Makes this connection's worker a member of its prefix's fleet, and tells the others.
-- $1 text: prefix; $2 integer: member. One row: joined.
select pg_try_advisory_lock(fleet_lock_key($1), $2) as joined, pg_notify('teamturn_fleet', $1);
