-- Takes the lock of whoever changes the partitions of a prefix, for this connection. $1 text: prefix. One row: taken.
select pg_try_advisory_lock(repartition_lock_key($1)) as taken;
