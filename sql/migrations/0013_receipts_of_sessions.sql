-- The receipts of a session, for who deletes it. An entry more for each turn.
-- compatible with: 10
-- in no transaction

-- One that was interrupted is left invalid.
drop index concurrently if exists receipts_of_sessions;
create index concurrently receipts_of_sessions on receipts (session_id);
