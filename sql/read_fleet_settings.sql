-- Reads what all workers of a prefix share, and changes nothing. $1 text: prefix. No row before the first start.
-- One row: partitions, prefetch; to_partitions, to_prefetch and phase of the change that is under way, or null.
select partitions, prefetch, to_partitions, to_prefetch, phase from fleet_settings where prefix = $1;
