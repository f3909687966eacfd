-- Ends the membership that this connection holds, and tells the others.
-- $1 text: prefix; $2 integer: member. One row: left.
select pg_advisory_unlock(fleet_lock_key($1), $2) as left, pg_notify('teamturn_fleet', $1);
