-- Reads who is a member of a prefix's fleet, who owns which partition, and what all of them share.
-- $1 text: prefix. One row: members (array), version and owners (null without an assignment), and what
-- read_fleet_settings.sql reads (null before the first start).
select
    array(select member from fleet_members($1)) as members,
    assignment.version,
    assignment.owners,
    shared.partitions,
    shared.prefetch,
    shared.to_partitions,
    shared.to_prefetch,
    shared.phase
from (select) as one
left join fleet_assignments as assignment on assignment.prefix = $1
left join fleet_settings as shared on shared.prefix = $1;
