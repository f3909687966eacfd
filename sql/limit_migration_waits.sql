-- Limits how long a migration waits for a table's lock: whatever comes behind it waits as well, and workers for 5 s at most.
-- One row, its value.
select set_config('lock_timeout', '3s', true);
