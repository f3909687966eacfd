-- Deletes receipts. $1 text[]: run ids.
delete from receipts where run_id = any ($1);
