-- Requests that become part of another's turn (`on_busy: coalesce`): who belongs to it is stored before its first step.

-- A row a request that joined a turn, from then to when that turn is stored. `asked` is the request as JSON: the turn can be
-- taken again without it, wherever its message is by then.
create table coalesced_runs (
    answered_by  varchar not null,  -- the run whose turn it joined
    request      bytea not null,    -- that one's fingerprint, as in turn_steps
    position     integer not null,
    run_id       varchar not null,
    asked        bytea not null,
    primary key (answered_by, request, position)
);

-- Whether the user of a session has said that a run is not wanted any more.
create function is_cancelled(of_run varchar, of_session varchar, of_user varchar) returns boolean
language sql stable
as $$
    select exists (
        select from cancellations as cancelled
        where cancelled.run_id = of_run
          and cancelled.session_id = of_session
          and cancelled.user_id is not distinct from of_user
    )
$$;

-- Stores which requests join the turns of some others, and returns what they ask; each session's lock is held here. A
-- turn that was joined before keeps those it has. Of the candidates, which are in the order of their delivery, those
-- come in that nobody has answered, taken or cancelled; one that was begun ends it, since those behind it come after it.
--   leaders: [{"position", "run_id", "session_id", "user_id", "request" (hex), "candidates": [{"number", "run_id",
--   "request" (hex)}]}], each run once; asked: what the candidates ask, by number from 1
-- One row a leader: its position, what those ask that joined it, in order, and whether one of them was cancelled since.
create function coalesce_runs(leaders jsonb, asked bytea[])
returns table ("position" integer, joined bytea[], cancelled boolean)
language plpgsql volatile
as $$
declare
    leader record;
    candidate record;
begin
    for leader in
        select entry."position", entry.run_id, entry.session_id, entry.user_id, entry.candidates,
               decode(entry.request, 'hex') as request
        from jsonb_to_recordset(leaders) as entry (
            "position" integer, run_id varchar, session_id varchar, user_id varchar, request varchar, candidates jsonb
        )
        order by entry.run_id
    loop
        if not exists (
            select from coalesced_runs as stored
            where stored.answered_by = leader.run_id and stored.request = leader.request
        ) then
            for candidate in
                select entry.number, entry.run_id, decode(entry.request, 'hex') as request
                from jsonb_to_recordset(leader.candidates) as entry (number integer, run_id varchar, request varchar)
                order by entry.number
            loop
                if exists (select from receipts as receipt where receipt.run_id = candidate.run_id)
                    or exists (select from agno_runs as run where run.run_id = candidate.run_id)
                    or is_cancelled(candidate.run_id, leader.session_id, leader.user_id)
                then
                    continue;
                end if;
                exit when (attempts_of(candidate.run_id, candidate.request)).attempts > 0;
                insert into coalesced_runs (answered_by, request, position, run_id, asked)
                values (leader.run_id, leader.request, candidate.number, candidate.run_id, asked[candidate.number]);
            end loop;
        end if;
        return query
        select
            leader."position",
            array_agg(stored.asked order by stored.position),
            coalesce(bool_or(is_cancelled(stored.run_id, leader.session_id, leader.user_id)), false)
        from coalesced_runs as stored
        where stored.answered_by = leader.run_id
          and stored.request = leader.request
          and not exists (select from receipts as receipt where receipt.run_id = stored.run_id);
    end loop;
end;
$$;

-- Stores the answers of finished or refused runs, and drops their attempts, journals and cancellations, and who joined
-- them.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status", "others": [the same of those that joined it]}]; replies: the replies' bytes, by position from 1
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
    delete from turn_attempts as attempt where attempt.run_id = any (run_ids);

    delete from turn_steps as step where step.run_id = any (run_ids);

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
