-- Takes an advisory lock that is nobody else's. $1 text: what names it. One row: taken.
select pg_try_advisory_lock(hashtextextended('teamturn trial ' || $1, 0)) as taken;
