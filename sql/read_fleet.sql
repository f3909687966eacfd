-- Reads who is a member of a prefix's fleet, and who owns which partition.
-- $1 text: prefix. One row: members (array), version and owners (null without an assignment).
select
    array(select member from fleet_members($1)) as members,
    assignment.version,
    assignment.owners
from (select) as one
left join fleet_assignments as assignment on assignment.prefix = $1;
