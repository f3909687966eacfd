-- A change of a prefix's partitions and prefetch, by `teamturn topology repartition`.
-- compatible with: 10

-- What the change is to, and how far it is: `gathering` the requests of the old queues, or `spreading` them over the new
-- ones. Null: none is under way. It is here that an interrupted change goes on.
alter table fleet_settings
    add column to_partitions integer,
    add column to_prefetch integer,
    add column phase varchar check (phase in ('gathering', 'spreading'));

-- The advisory lock of whoever changes a prefix.
create function repartition_lock_key(prefix text) returns bigint
language sql stable
return hashtextextended('teamturn repartition ' || prefix, hashtextextended(current_schema(), 0));

-- Records the assignment of a prefix, if it is still the one of `seen` (null: there was none). Tells the others. While a
-- change is under way, and for another number of partitions than is recorded, there is none: so that a worker that was
-- cut off during a change, and one of a version that knows nothing of changes, consumes nothing of the new queues.
create or replace function record_assignment(of_prefix text, seen bigint, new_owners bigint[]) returns boolean
language plpgsql volatile
as $$
begin
    if exists (
        select from fleet_settings
        where prefix = of_prefix and (phase is not null or partitions <> cardinality(new_owners))
    ) then
        return false;
    end if;
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
