-- Stores what answers some refused runs; see the function in migrations/.
-- $1 jsonb: [{"position", "run_id", …}]; $2 bytea[]: the replies, by position from 1. One row, empty.
select store_receipts($1::jsonb, $2::bytea[]);
