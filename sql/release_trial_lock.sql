-- Gives that lock back. $1 text: what names it. One row: released.
select pg_advisory_unlock(hashtextextended('teamturn trial ' || $1, 0)) as released;
