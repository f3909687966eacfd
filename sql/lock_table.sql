-- Reads how many locks Postgres has room for, as its manual says. One row: locks.
select
    current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) as locks;
