-- Taking stored sessions away for good: by their age, and one by one.
-- compatible with: 10

-- The sessions of which something is unfinished: a run waits for a human who can still decide, or was begun at a moment (unix
-- seconds) or later and has no answer, or was cancelled since then and has none. Its request is in a queue: it is executed, or
-- goes on behind its last step, when it is delivered again, though nobody has the session's lock until then. A set, which
-- is read once: a function of one session would read the attempts for each.
create function unfinished_sessions(since bigint) returns table (session_id varchar)
language sql stable
as $$
    select paused.session_id from paused_runs as paused where paused.pause is not null and paused.expires_at > now()
    union all
    select started.session_id from turn_attempts as started
    where started.started_at >= to_timestamp(since) and started.session_id is not null  -- one in `not in` would hide all
    union all
    select cancelled.session_id from cancellations as cancelled where cancelled.asked_at >= to_timestamp(since)
$$;

-- Deletes sessions with their runs and all that is left of their turns, but for the receipts; whoever runs this holds their
-- locks. One row: how many there were, of how many runs, and how many bytes these took, as they are stored.
create function delete_sessions(of_sessions varchar[], out sessions bigint, out runs bigint, out bytes bigint)
language plpgsql volatile
as $$
declare
    begun varchar[];
begin
    select count(*), coalesce(sum(pg_column_size(run.run_data)), 0) into runs, bytes
    from agno_runs as run
    where run.session_id = any (of_sessions);

    -- What paused runs hold is under their own name, or under that of the run which goes on with them.
    with paused as (
        delete from paused_runs as held where held.session_id = any (of_sessions)
        returning coalesce(held.continued_by, held.run_id) as run_id,
                  coalesce(held.continued_request, held.request) as request
    )
    delete from turn_steps as step using paused
    where step.run_id = paused.run_id and step.request = paused.request;

    with attempt as (
        delete from turn_attempts as started where started.session_id = any (of_sessions) returning started.run_id
    )
    select coalesce(array_agg(attempt.run_id), '{}') into begun from attempt;
    delete from turn_steps as step where step.run_id = any (begun);
    delete from coalesced_runs as joined where joined.answered_by = any (begun);
    delete from cancellations as cancelled where cancelled.session_id = any (of_sessions);

    -- In one order, as commits and summaries are: two batches then can't deadlock.
    perform from agno_sessions as session
    where session.session_id = any (of_sessions)
    order by session.session_id
    for update;
    with gone as (
        delete from agno_sessions as session where session.session_id = any (of_sessions)
        returning coalesce(pg_column_size(session.session_data), 0) + coalesce(pg_column_size(session.summary), 0)
            + coalesce(pg_column_size(session.metadata), 0) as size
    )
    select count(*), bytes + coalesce(sum(gone.size), 0) into sessions, bytes from gone;
end;
$$;

-- Deletes those of some sessions whose last turn was before a moment (unix seconds), and their receipts of before it; whoever
-- runs this holds their locks: one that had a turn since it was listed, or is unfinished by now, is left alone. One row:
-- how many there were, of how many runs, how many receipts, and how many bytes all of it took.
create function prune_sessions(
    of_sessions varchar[], before bigint, out sessions bigint, out runs bigint, out receipts bigint, out bytes bigint
)
language plpgsql volatile
as $$
declare
    idle varchar[] := array(
        select session.session_id from agno_sessions as session
        where session.session_id = any (of_sessions)
          and coalesce(session.updated_at, session.created_at) < before
          and session.session_id not in (select unfinished.session_id from unfinished_sessions(before) as unfinished)
    );
begin
    select gone.sessions, gone.runs, gone.bytes into sessions, runs, bytes from delete_sessions(idle) as gone;
    with gone as (
        delete from receipts as receipt
        where receipt.session_id = any (idle) and receipt.created_at < to_timestamp(before)
        returning pg_column_size(receipt.reply) as size
    )
    select count(*), prune_sessions.bytes + coalesce(sum(gone.size), 0) into receipts, bytes from gone;
end;
$$;

-- Deletes what runs of before a moment (unix seconds) have left that were begun and never answered: their request is gone, or
-- nobody takes it. No attempt is under way that began before it: the moment is at least as long ago as a turn can last. What a
-- paused run is to go on with stays. One row: how many runs, how many steps.
create function prune_journal(before bigint, out runs bigint, out steps bigint)
language plpgsql volatile
as $$
declare
    begun varchar[];
    others bigint;
begin
    with attempt as (
        delete from turn_attempts as started
        where started.started_at < to_timestamp(before)
          and not exists (select from paused_runs as paused where paused.continued_by = started.run_id)
        returning started.run_id
    )
    select coalesce(array_agg(attempt.run_id), '{}') into begun from attempt;
    runs := cardinality(begun);
    delete from coalesced_runs as joined where joined.answered_by = any (begun);
    delete from turn_steps as step
    where step.run_id = any (begun)
      and not exists (select from paused_runs as paused where paused.run_id = step.run_id);
    get diagnostics steps = row_count;
    -- Of attempts that were never recorded.
    delete from turn_steps as step
    where step.recorded_at < to_timestamp(before)
      and not exists (select from turn_attempts as started where started.run_id = step.run_id)
      and not exists (
          select from paused_runs as paused where step.run_id in (paused.run_id, paused.continued_by)
      );
    get diagnostics others = row_count;
    steps := steps + others;
    delete from cancellations as cancelled where cancelled.asked_at < to_timestamp(before);
    perform drop_expired_pauses();
end;
$$;
