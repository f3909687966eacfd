-- Reads whose the receipts of a session are; whoever runs this holds its lock. A page at a time: $1 text: session_id; after
-- $2 text (run_id; null: from the beginning); $3 bigint: how many at most.
-- One row a receipt: run_id, session_id, user_id, target_type, target_id, created_at (unix seconds).
select
    receipt.run_id, receipt.session_id, receipt.user_id, receipt.target_type, receipt.target_id,
    extract(epoch from receipt.created_at)::bigint as created_at
from receipts as receipt
where receipt.session_id = $1 and ($2::text is null or receipt.run_id > $2)
order by receipt.run_id
limit $3;
