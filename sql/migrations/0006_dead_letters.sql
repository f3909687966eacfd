-- Replaying dead letters: a run that is stored as ERROR is set aside, so that its request can be executed again.

-- The id that a run is kept under once another attempt has its own: <run_id>~<number>, from the attempt's number up to
-- the first that is free. An id has at most 255 bytes; of a long one, its hash stands for it.
create function id_set_aside(run_id varchar, attempt integer) returns varchar
language plpgsql volatile
as $$
declare
    stem varchar := case when octet_length(run_id) <= 240 then run_id
                         else left(encode(sha256(convert_to(run_id, 'UTF8')), 'hex'), 32) end;
    number integer := attempt;
begin
    while exists (select from agno_runs as run where run.run_id = stem || '~' || number)
       or exists (select from receipts as receipt where receipt.run_id = stem || '~' || number)
    loop
        number := number + 1;
    end loop;
    return stem || '~' || number;
end;
$$;

-- Makes way for another attempt of a run that is stored as ERROR: the next delivery of its request is executed, as the
-- session's latest turn and the attempt after the last one. One row:
--   unknown   nothing is stored of the run: its request is executed when it is delivered
--   answered  it is stored, and not as ERROR: its request gets the stored reply
--   foreign   the run_id is another request's
--   busy      the session's lock is held: a turn of it is being executed
--   reopened  the stored run and its members' are history, under other ids, and it is REGENERATED; the receipt is gone.
--             `attempt` is the number of the attempt to come. Without a session (it was deleted), it begins a new one
-- It takes the session's lock, if it comes to that; the caller gives it back once the transaction has ended. VOLATILE, so
-- that what is read after the lock is newer than the lock.
create function reopen_run(
    of_run varchar, of_session varchar, of_user varchar, of_target_type varchar, of_target_id varchar,
    of_fingerprint bytea,
    out outcome text, out attempt integer, out session_exists boolean
)
language plpgsql volatile
as $$
declare
    locked boolean;
    receipt receipts%rowtype;
    run agno_runs%rowtype;
    renamed jsonb;
begin
    foreach locked in array array[false, true] loop
        select * into receipt from receipts as stored where stored.run_id = of_run;
        select * into run from agno_runs as stored where stored.run_id = of_run;
        outcome := case
            when receipt.run_id is null and run.run_id is null then 'unknown'
            when (receipt.session_id, receipt.user_id, receipt.target_type, receipt.target_id, receipt.fingerprint)
                is not distinct from (of_session, of_user, of_target_type, of_target_id, of_fingerprint)
                and coalesce(run.session_id, of_session) = of_session
                then case
                    when receipt.status = 'ERROR' and coalesce(run.status, 'ERROR') = 'ERROR' then 'reopened'
                    else 'answered'
                end
            -- What it was asked is not known any more; whose it was is.
            when receipt.run_id is null and run.status = 'ERROR'
                and (run.session_id, run.user_id, run.run_type, run.parent_run_id)
                    is not distinct from (of_session, of_user, of_target_type, null)
                and coalesce(run.team_id, run.agent_id, run.workflow_id) = of_target_id
                then 'reopened'
            else 'foreign'
        end;
        if outcome <> 'reopened' then
            return;
        end if;
        if not locked and not pg_try_advisory_lock(session_lock_key(of_session)) then
            outcome := 'busy';
            return;
        end if;
    end loop;

    attempt := least(greatest(count_of(coalesce(
        object_of(run.run_data) -> 'attempt', to_jsonb(convert_from(receipt.reply, 'UTF8')::json -> 'attempt')
    )), 1), 1000000);
    session_exists := exists (select from agno_sessions as session where session.session_id = of_session);

    -- A member's run would meet the one of the new attempt, which has the same id.
    with recursive part as (
        select stored.run_id from agno_runs as stored where stored.run_id = run.run_id
        union
        select below.run_id
        from agno_runs as below join part on below.parent_run_id = part.run_id
        where below.session_id = of_session
    )
    select jsonb_object_agg(part.run_id, id_set_aside(part.run_id, attempt)) into renamed from part;

    update agno_runs as stored
    set run_id = part.new_id,
        parent_run_id = coalesce(renamed ->> stored.parent_run_id, stored.parent_run_id),
        status = case stored.run_id when of_run then 'REGENERATED' else stored.status end,
        run_data = object_of(stored.run_data)
            || jsonb_build_object('run_id', part.new_id)
            || case when stored.run_id = of_run then '{"status": "REGENERATED"}' else '{}'::jsonb end
            || case when renamed ? stored.parent_run_id
                    then jsonb_build_object('parent_run_id', renamed -> stored.parent_run_id) else '{}' end
            || case when jsonb_typeof(stored.run_data -> 'step_results') = 'array' then jsonb_build_object(
                    'step_results',
                    (
                        select coalesce(jsonb_agg(case
                            when renamed ? (step.result ->> 'step_run_id')
                            then step.result || jsonb_build_object(
                                'step_run_id', renamed -> (step.result ->> 'step_run_id')
                            )
                            else step.result
                        end order by step.number), '[]')
                        from jsonb_array_elements(stored.run_data -> 'step_results')
                            with ordinality as step (result, number)
                    )
               ) else '{}' end,
        updated_at = extract(epoch from now())::bigint
    from jsonb_each_text(renamed) as part (old_id, new_id)
    where stored.run_id = part.old_id;

    delete from receipts as stored where stored.run_id = of_run;

    -- What the next start counts on from; nobody has started it yet.
    -- It is not for having failed before that it is taken for poison.
    insert into turn_attempts as stored (run_id, attempts, uncounted, session_id)
    values (of_run, attempt, attempt, of_session)
    on conflict (run_id) do update
    set attempts = greatest(stored.attempts, excluded.attempts),
        uncounted = greatest(stored.attempts, excluded.attempts),
        session_id = excluded.session_id,
        worker = null;

    attempt := attempt + 1;
end;
$$;
