-- Which workers live, who consumes which partition, and what each is at.

-- The first key of the advisory locks by which the workers of a prefix are members of its fleet; the second is the
-- member. Session locks have one key of 64 bits, so that the two kinds can't meet.
create function fleet_lock_key(prefix text) returns integer
language sql stable
return (hashtextextended('teamturn fleet ' || prefix, hashtextextended(current_schema(), 0)) & 2147483647)::integer;

-- The assignment that the fleet goes by: the owner of each partition, from 0. Whoever sees members that are not those
-- it was made for makes the next; every worker would make the same.
create table fleet_assignments (
    prefix      varchar primary key,
    version     bigint not null,
    owners      bigint[] not null,
    changed_at  timestamptz not null default now()
);

-- The members of a prefix now: the workers whose lane is there to hold their lock. No heartbeat could say it better.
create function fleet_members(of_prefix text)
returns table (member bigint, pid integer, application_name text, client_addr inet, since timestamptz)
language sql volatile
as $$
    select held.objid::bigint, held.pid, activity.application_name, activity.client_addr, activity.backend_start
    from pg_locks as held
    left join pg_stat_activity as activity on activity.pid = held.pid
    where held.locktype = 'advisory'
      and held.objsubid = 2
      and held.granted
      and held.database = (select oid from pg_database where datname = current_database())
      and held.classid::bigint = fleet_lock_key(of_prefix)
    order by held.objid;
$$;

-- Records the assignment of a prefix, if it is still the one of `seen` (null: there was none). Tells the others.
create function record_assignment(of_prefix text, seen bigint, new_owners bigint[]) returns boolean
language plpgsql volatile
as $$
begin
    if seen is null then
        insert into fleet_assignments (prefix, version, owners) values (of_prefix, 1, new_owners)
        on conflict (prefix) do nothing;
    else
        update fleet_assignments set version = seen + 1, owners = new_owners, changed_at = now()
        where prefix = of_prefix and version = seen;
    end if;
    if found then
        perform pg_notify('teamturn_fleet', of_prefix);
    end if;
    return found;
end;
$$;

-- Who executes a run, for people who ask: which session it is of, and which worker started it.
alter table turn_attempts add column if not exists session_id varchar;
alter table turn_attempts add column if not exists worker varchar;
