-- Records who owns which partition; see the function in migrations/.
-- $1 text: prefix; $2 bigint: the version that was seen, or null; $3 bigint[]: owners, by partition from 0.
-- One row: recorded.
select record_assignment($1, $2, $3) as recorded;
