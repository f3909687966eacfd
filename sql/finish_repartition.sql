-- Records that the partitions of a prefix have changed. $1 text: prefix. No rows.
update fleet_settings
set partitions = to_partitions, prefetch = to_prefetch, to_partitions = null, to_prefetch = null, phase = null
where prefix = $1 and phase = 'spreading';
