-- Takes back that the partitions of a prefix are to change; nothing has been moved. $1 text: prefix. No rows.
update fleet_settings set to_partitions = null, to_prefetch = null, phase = null where prefix = $1;
