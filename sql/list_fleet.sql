-- Lists the workers of a prefix. $1 text: prefix.
-- One row a worker: member, worker, client_addr, since, running (turns started there), oldest (of these, when started).
select
    live.member,
    regexp_replace(live.application_name, '^teamturn lane \d+ ', '') as worker,
    live.client_addr::text as client_addr,
    live.since,
    (
        select count(*) from turn_attempts as attempt
        where attempt.worker = regexp_replace(live.application_name, '^teamturn lane \d+ ', '')
    ) as running,
    (
        select min(attempt.started_at) from turn_attempts as attempt
        where attempt.worker = regexp_replace(live.application_name, '^teamturn lane \d+ ', '')
    ) as oldest
from fleet_members($1) as live;
