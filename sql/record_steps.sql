-- Records steps of turns; see the function in migrations/.
-- $1 jsonb: [{"position", "run_id", "key", …}], each key of a run once; $2 bytea[]: the records, by position from 1.
-- One row, empty.
select record_steps($1::jsonb, $2::bytea[]);
