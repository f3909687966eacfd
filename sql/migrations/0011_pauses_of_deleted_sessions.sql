-- Pauses of sessions that other programs delete, and continuations that are refused after they were begun.

-- Those of which is only known that they have expired, for `drop_expired_pauses`: it read the whole table for them.
create index paused_runs_known_as_expired on paused_runs (expires_at) where pause is null;

-- As before, but for a paused run that is not stored any more: who deletes a session without teamturn leaves its pauses,
-- and whoever begins one of the same id, another user it may be, must not be given them.
create or replace function continue_runs(entries jsonb) returns table (run_id varchar)
language plpgsql volatile
as $$
declare
    entry record;
    paused record;
begin
    for entry in
        select e.run_id, e.session_id, e.continues, decode(e.request, 'hex') as request
        from jsonb_to_recordset(entries) as e (run_id varchar, request varchar, session_id varchar, continues varchar)
        order by e.continues
    loop
        select coalesce(p.continued_by, p.run_id) as holder, coalesce(p.continued_request, p.request) as holding
        into paused
        from paused_runs as p
        where p.run_id = entry.continues and p.session_id = entry.session_id and p.pause is not null
          and (select run.session_id from agno_runs as run where run.run_id = p.run_id) = entry.session_id
        for update;
        continue when not found;
        update turn_steps as step
        set run_id = entry.run_id, request = entry.request
        where step.run_id = paused.holder and step.request = paused.holding
          and (step.run_id, step.request) is distinct from (entry.run_id, entry.request);
        update paused_runs as p
        set continued_by = entry.run_id, continued_request = entry.request
        where p.run_id = entry.continues;
        run_id := entry.run_id;
        return next;
    end loop;
end;
$$;

-- As before. A continuation that was begun and then refused (its team is not named any more, say) has ended as little as
-- one that failed: it gives back what it went on with. Where the session was deleted meanwhile, nobody wants it back.
create or replace function pause_runs(entries jsonb, records bytea[]) returns void
language plpgsql volatile
as $$
declare
    entry record;
    paused record;
begin
    for entry in
        select e.run_id, e.session_id, decode(e.fingerprint, 'hex') as request, e.status, e.continues, e.pause
        from jsonb_to_recordset(entries) as e (
            run_id varchar, session_id varchar, fingerprint varchar, status varchar, continues varchar, pause jsonb
        )
        where e.continues is not null or e.pause is not null
        order by e.run_id
    loop
        select p.run_id, p.request into paused
        from paused_runs as p
        where p.run_id = entry.continues and p.continued_by = entry.run_id and p.continued_request = entry.request
        for update;
        if found and entry.status in ('ERROR', 'REJECTED') and exists (
            select from agno_runs as run where run.run_id = paused.run_id and run.session_id = entry.session_id
        ) then
            delete from turn_steps as step
            where step.run_id = entry.run_id and step.request = entry.request
              and step.state = 'failed' and step.attempt > 0;
            update turn_steps as step
            set run_id = paused.run_id, request = paused.request,
                attempt = case when step.attempt > 0 then -1 else step.attempt end
            where step.run_id = entry.run_id and step.request = entry.request;
            update paused_runs as p set continued_by = null, continued_request = null where p.run_id = paused.run_id;
        elsif found then
            delete from paused_runs as p where p.run_id = paused.run_id;
        end if;
        if entry.pause is not null then
            perform drop_expired_pauses();
            update turn_steps as step set attempt = 0
            where step.run_id = entry.run_id and step.request = entry.request and step.attempt <> 0;
            insert into paused_runs (run_id, session_id, request, pause, expires_at)
            values (
                entry.run_id, entry.session_id, entry.request, records[(entry.pause ->> 'position')::integer],
                now() + make_interval(secs => (entry.pause ->> 'seconds')::double precision)
            );
        end if;
    end loop;
end;
$$;
