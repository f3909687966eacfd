-- Asks for a sign of life, so that only a worker that is frozen or cut off stays idle for idle_session_timeout.
-- One row: read_only (no turn could be stored: a stand-by, or default_transaction_read_only was set).
select current_setting('transaction_read_only')::boolean as read_only;
