-- Deletes those of some sessions that are old, with their old receipts; whoever runs this holds their locks. See the function in
-- migrations/. $1 text[]: session ids; $2 bigint: last turn before then, unix seconds. One row: sessions, runs, receipts, bytes.
select sessions, runs, receipts, bytes from prune_sessions($1, $2);
