-- Lets one migration at a time run, until its transaction ends.
-- $1 text: schema. One row, empty.
select pg_advisory_xact_lock(hashtextextended('teamturn.migrate ' || $1, 0));
