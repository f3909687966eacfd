-- Reads what all workers of a prefix share, and changes nothing. $1 text: prefix. No row before the first start.
-- One row: partitions, prefetch.
select partitions, prefetch from fleet_settings where prefix = $1;
