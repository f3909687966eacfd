-- Writes other replies into receipts. $1 text[]: run ids; $2 bytea[]: their replies.
update receipts as receipt
set reply = given.reply
from unnest($1::text[], $2::bytea[]) as given (run_id, reply)
where receipt.run_id = given.run_id;
