-- Looks whether this connection holds that lock. $1 text: what names it. One row: held.
select exists (
    select from pg_locks
    where locktype = 'advisory'
      and objsubid = 1
      and granted
      and pid = pg_backend_pid()
      and ((classid::bigint << 32) | objid::bigint) = hashtextextended('teamturn trial ' || $1, 0)
) as held;
