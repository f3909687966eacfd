-- Runs that wait for a human (PAUSED), and how another run goes on with what they have recorded.

-- A row a paused run, until a run that goes on with it is stored. Its steps stay in turn_steps meanwhile: under its own
-- name, and under the other run's from when that one is begun. `pause` is JSON, in bytea as all that a user wrote.
create table paused_runs (
    run_id             varchar primary key,
    session_id         varchar not null,
    request            bytea not null,  -- its fingerprint, as in turn_steps
    pause              bytea,           -- null: expired, and its steps are dropped
    expires_at         timestamptz not null,
    continued_by       varchar,
    continued_request  bytea
);
create index paused_runs_of_sessions on paused_runs (session_id);
create index paused_runs_by_continuation on paused_runs (continued_by) where continued_by is not null;
create index paused_runs_by_expiry on paused_runs (expires_at) where pause is not null;
create index paused_runs_known_as_expired on paused_runs (expires_at) where pause is null;

-- How often a run was started, as far as recorded, and how many of these starts came to nothing: no step was recorded, and
-- no worker that stops ended them. What it goes on with are no starts of its own: attempts 0 and below.
create or replace function attempts_of(of_run varchar, of_request bytea, out attempts integer, out fruitless integer)
language plpgsql stable
as $$
declare
    uncounted integer := 0;
    fruitful integer;
    latest integer;
begin
    select attempt.attempts, attempt.uncounted into attempts, uncounted
    from turn_attempts as attempt
    where attempt.run_id = of_run;
    select count(distinct step.attempt), max(step.attempt) into fruitful, latest
    from turn_steps as step
    where step.run_id = of_run and step.request = of_request and step.state in ('done', 'failed') and step.attempt > 0;
    -- A first start is recorded beside its execution: its first step may come before it.
    attempts := greatest(attempts, latest, 0);
    fruitless := greatest(attempts - coalesce(uncounted, 0) - fruitful, 0);
end;
$$;

-- Gives the steps of paused runs to the runs that go on with them; each session's lock is held here. One row a run for
-- which there was one. One that was begun to go on with it before, and is held by nobody since the lock is ours, is
-- followed. Who deletes a session without teamturn leaves its pauses, and whoever begins one of the same id, another user it
-- may be, must not be given them: a paused run is one that is stored.
--   entries: [{"run_id", "request" (hex), "session_id", "continues"}]
create function continue_runs(entries jsonb) returns table (run_id varchar)
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

-- What a stored answer changes of paused runs: a run that went on with one has ended, or pauses itself.
--   entries: [{"run_id", "session_id", "fingerprint" (hex), "status", "continues", "pause": {"position", "seconds"}}];
--   records: the pauses, by position from 1
-- A run that failed, or was refused after it was begun, gives back what it went on with, its own steps included: those that
-- are done need not be made again by who goes on next (-1: what they changed in the state is not stored). Where the session
-- was deleted meanwhile, nobody wants it back. What has paused is stored with its state (0).
create function pause_runs(entries jsonb, records bytea[]) returns void
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

-- Drops what expired pauses hold, some at a time; that they have expired is known for a month.
create function drop_expired_pauses() returns void
language plpgsql volatile
as $$
begin
    with expired as (
        update paused_runs as paused set pause = null
        where paused.run_id = any (array(
            select old.run_id from paused_runs as old
            where old.pause is not null and old.expires_at < now() - interval '1 day'
            limit 100 for update skip locked
        ))
        returning coalesce(paused.continued_by, paused.run_id) as run_id,
                  coalesce(paused.continued_request, paused.request) as request
    )
    delete from turn_steps as step using expired
    where step.run_id = expired.run_id and step.request = expired.request;

    delete from paused_runs as paused
    where paused.run_id = any (array(
        select old.run_id from paused_runs as old
        where old.pause is null and old.expires_at < now() - interval '30 days'
        limit 100 for update skip locked
    ));
end;
$$;

-- Stores the answers of finished or refused runs, and drops their attempts, journals and cancellations, and who joined
-- them; the journal of one that has paused stays.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status", "others": [the same of those that joined it], "continues", "pause"}]; replies: the replies' bytes, and the
--   pauses, by position from 1
create or replace function store_receipts(entries jsonb, replies bytea[]) returns void
language plpgsql volatile  -- whose plans are kept: as SQL it was planned in each commit (0.25 ms, then 0.05)
as $$
declare
    answers jsonb := entries || coalesce(
        (
            select jsonb_agg(other)
            from jsonb_array_elements(entries) as entry, jsonb_array_elements(entry -> 'others') as other
        ),
        '[]'
    );
    run_ids varchar[] := array(select answer ->> 'run_id' from jsonb_array_elements(answers) as answer);
begin
    if jsonb_path_exists(entries, '$[*] ? (exists (@.pause) || exists (@.continues))') then
        perform pause_runs(entries, replies);
    end if;

    delete from turn_attempts as attempt where attempt.run_id = any (run_ids);

    delete from turn_steps as step
    where step.run_id = any (
        array(select answer ->> 'run_id' from jsonb_array_elements(answers) as answer where not answer ? 'pause')
    )
    -- Others may use a run_id as well: what a paused run is to go on with is not theirs.
    and not exists (
        select from paused_runs as paused
        where paused.continued_by = step.run_id and paused.continued_request = step.request
    );

    delete from cancellations as cancelled where cancelled.run_id = any (run_ids);

    delete from coalesced_runs as joined where joined.answered_by = any (run_ids);

    insert into receipts (
        run_id, session_id, user_id, target_type, target_id, fingerprint, status, reply
    )
    select
        answer.run_id, answer.session_id, answer.user_id, answer.target_type, answer.target_id,
        decode(answer.fingerprint, 'hex'), answer.status, replies[answer."position"]
    from jsonb_to_recordset(answers) as answer (
        "position" integer, run_id varchar, session_id varchar, user_id varchar, target_type varchar,
        target_id varchar, fingerprint varchar, status varchar
    )
    -- Two batches may hold the same run_ids, of different sessions; in one order they can't deadlock.
    order by answer.run_id;
end;
$$;
