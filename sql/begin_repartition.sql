-- Records that the partitions of a prefix are to change, and drops the assignment: nobody is to consume any.
-- $1 text: prefix; $2 integer: partitions; $3 integer: prefetch. No rows.
with dropped as (
    delete from fleet_assignments where prefix = $1
)
update fleet_settings set to_partitions = $2, to_prefetch = $3, phase = 'gathering' where prefix = $1 and phase is null;
