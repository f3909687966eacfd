-- Sessions that Agno 2 wrote: their runs are a jsonb array in a column of the session row, where Agno 3 leaves it. They
-- are read as they are, before the session's rows in agno_runs; nothing is moved. A run that is in both, since Agno's own
-- migration has copied it, is the row's.

-- The column `runs` of a session, if the table has one: null where it has none, or where nothing can be read in it.
-- Anybody can drop it at any time, so that no statement may name it. The view is read with any search_path.
create function agno_2_column(of_session varchar) returns jsonb
language plpgsql stable
set search_path from current
as $$
declare
    found jsonb;
begin
    if not exists (
        select from pg_attribute
        where attrelid = 'agno_sessions'::regclass and attname = 'runs' and attnum > 0 and not attisdropped
    ) then
        return null;
    end if;
    execute 'select to_jsonb(runs) from agno_sessions where session_id = $1' into found using of_session;
    if jsonb_typeof(found) = 'string' then
        begin
            found := (found #>> '{}')::jsonb;
        exception when invalid_text_representation then
            return null;
        end;
    end if;
    return case when jsonb_typeof(found) = 'array' then found end;
end;
$$;

-- How many runs a session has there: its rows' indexes begin after them, so that those which Agno's migration makes of
-- them come before.
create function number_of_agno_2_runs(of_session varchar) returns integer
language sql stable
return coalesce(jsonb_array_length(agno_2_column(of_session)), 0);

-- The runs that a session has there and nowhere else, oldest first.
create function agno_2_runs(of_session varchar) returns table (run_data jsonb, number bigint)
language sql stable
begin atomic
    select run.data, run.number
    from jsonb_array_elements(agno_2_column(of_session)) with ordinality as run (data, number)
    where jsonb_typeof(run.data) = 'object'
      and not exists (select from agno_runs as stored where stored.run_id = run.data ->> 'run_id');
end;

-- Whether a turn is shown it: completed, and not a member's.
create function is_agno_2_history(run_data jsonb) returns boolean
language sql immutable
return coalesce(run_data ->> 'status', 'COMPLETED') = 'COMPLETED' and run_data ->> 'parent_run_id' is null;

create or replace view sessions as
select
    session_id,
    session_type,
    agent_id,
    team_id,
    workflow_id,
    user_id,
    session_data,
    agent_data,
    team_data,
    workflow_data,
    metadata,
    coalesce((select jsonb_agg(old.run_data order by old.number) from agno_2_runs(session.session_id) as old), '[]')
    || coalesce(
        (
            select jsonb_agg(run.run_data order by run.run_index, run.created_at, run.run_id)
            from agno_runs as run
            where run.session_id = session.session_id
        ),
        '[]'
    ) as runs,
    summary,
    created_at,
    updated_at
from agno_sessions as session;

-- The last completed runs of a session, oldest first: at most `most` (null: all), and as many as fit into so many
-- bytes, though one at least. A jsonb array of more than 256 MB is an error, and the session would be lost for good.
-- A loop over a cursor fetches one row at a time: what does not fit any more is not unpacked. Agno 2's are looked at only
-- where there are not enough others: with `most` turns of its own, a session costs what any other does.
create or replace function last_runs_within(of_session varchar, most bigint, most_bytes bigint) returns jsonb
language plpgsql stable
as $$
declare
    newest_first cursor for
        select run_as.shown, run_as.bytes
        from (
            select completed.run_data, completed.run_index, completed.created_at, completed.run_id
            from agno_runs as completed
            where completed.session_id = of_session
              and completed.status = 'COMPLETED'
              and completed.parent_run_id is null
            order by completed.run_index desc, completed.created_at desc, completed.run_id desc
            limit most
        ) as run,
        run_as_history(run.run_data) as run_as
        order by run.run_index desc, run.created_at desc, run.run_id desc;
    of_agno_2_newest_first cursor for
        select run_as.shown, run_as.bytes
        from agno_2_runs(of_session) as old, run_as_history(old.run_data) as run_as
        where is_agno_2_history(old.run_data)
        order by old.number desc;
    bytes bigint := 0;
    runs jsonb[] := '{}';
begin
    for run in newest_first loop
        bytes := bytes + run.bytes;
        exit when bytes > most_bytes and runs <> '{}';
        runs := array_prepend(run.shown, runs);
    end loop;
    if bytes <= most_bytes and (most is null or cardinality(runs) < most) then
        for run in of_agno_2_newest_first loop
            exit when cardinality(runs) >= most;
            bytes := bytes + run.bytes;
            exit when bytes > most_bytes and runs <> '{}';
            runs := array_prepend(run.shown, runs);
        end loop;
    end if;
    return to_jsonb(runs);
end;
$$;

-- Runs of a session as a turn was shown them before: those of these ids, oldest first. A deleted one is missing.
create or replace function runs_again(of_session varchar, run_ids jsonb) returns jsonb
language sql stable
as $$
    with wanted as (
        select array(select jsonb_array_elements_text(run_ids)) as ids
    ),
    rows_of_it as (
        select run_as.shown, run.run_index, run.created_at, run.run_id
        from agno_runs as run, wanted, run_as_history(run.run_data) as run_as
        where run.run_id = any (wanted.ids) and run.session_id = of_session
    )
    select coalesce(
        (
            select jsonb_agg(run_as.shown order by old.number)
            from wanted, agno_2_runs(of_session) as old, run_as_history(old.run_data) as run_as
            where (select count(*) from rows_of_it) < cardinality(wanted.ids) and old.run_data ->> 'run_id' = any (wanted.ids)
        ), '[]'
    ) || coalesce((select jsonb_agg(shown order by run_index, created_at, run_id) from rows_of_it), '[]');
$$;

-- Commits finished turns, each of another session whose lock this connection holds: the session row merged, the
-- runs appended, the receipt with the reply's bytes, the attempts dropped. One row a turn:
--   committed  all of it is stored
--   deleted    the session was deleted since the claim: nothing is stored, and it is not resurrected
--   stale      somebody else wrote the session since the claim: nothing is stored; claim again
-- turns: [{"position", "session", "turn_seq" (null: the claim saw no session), "runs", "receipt"}]
create or replace function commit_turns(turns jsonb, replies bytea[])
returns table ("position" integer, outcome text)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
as $$
declare
    stored integer[];
    -- The planner takes a batch for a hundred turns whatever its size, and would rather read a table of some ten
    -- thousand sessions than look a hundred up. An array it takes for ten (20,000 sessions: 2.6 ms, then 0.9 ms).
    sessions varchar[] := array(
        select entry -> 'session' ->> 'session_id' from jsonb_array_elements(turns) as entry
    );
begin
    -- In one order, as the summaries' are: two batches then can't deadlock.
    perform from agno_sessions as session
    where session.session_id = any (sessions)
    order by session.session_id
    for no key update;

    with turn as (
        select entry."position", entry.turn_seq, s.*
        from jsonb_to_recordset(turns) as entry ("position" integer, turn_seq bigint, session jsonb),
             jsonb_to_record(entry.session) as s (
                 session_id varchar, session_type varchar, agent_id varchar, team_id varchar,
                 workflow_id varchar, user_id varchar, session_state jsonb, session_name text, usage jsonb,
                 tokens jsonb,  -- what a worker of before this migration calls usage
                 agent_data jsonb, team_data jsonb, workflow_data jsonb, metadata jsonb,
                 started bigint, ended bigint
             )
    ),
    updated as (
        update agno_sessions as session
        set session_data = merge_session_data(
                session.session_data, turn.session_state, turn.session_name, coalesce(turn.usage, turn.tokens)
            ),
            metadata = case when turn.metadata = '{}' then session.metadata
                            else object_of(session.metadata) || turn.metadata end,
            agent_data = case when turn.agent_data is null then session.agent_data
                              else object_of(session.agent_data) || turn.agent_data end,
            team_data = case when turn.team_data is null then session.team_data
                             else object_of(session.team_data) || turn.team_data end,
            workflow_data = case when turn.workflow_data is null then session.workflow_data
                                 else object_of(session.workflow_data) || turn.workflow_data end,
            updated_at = turn.ended,
            turn_seq = session.turn_seq + 1
        from turn
        where session.session_id = any (sessions)
          and session.session_id = turn.session_id and session.turn_seq = turn.turn_seq
        returning turn."position"
    ),
    inserted as (
        insert into agno_sessions (
            session_id, session_type, agent_id, team_id, workflow_id, user_id, session_data,
            agent_data, team_data, workflow_data, metadata, created_at, updated_at, turn_seq
        )
        select
            turn.session_id, turn.session_type, turn.agent_id, turn.team_id, turn.workflow_id, turn.user_id,
            merge_session_data(null, turn.session_state, turn.session_name, coalesce(turn.usage, turn.tokens)),
            turn.agent_data, turn.team_data, turn.workflow_data, turn.metadata, turn.started, turn.ended, 1
        from turn
        where turn.turn_seq is null
        order by turn.session_id
        on conflict (session_id) do nothing
        returning session_id
    )
    select array(
        select updated."position" from updated
        union all
        select turn."position" from turn join inserted on inserted.session_id = turn.session_id
    ) into stored;

    insert into agno_runs (
        run_id, session_id, run_type, agent_id, team_id, workflow_id, user_id, parent_run_id, status,
        run_index, run_data, created_at, updated_at
    )
    select
        run.data ->> 'run_id', entry.session ->> 'session_id', run.type,
        run.data ->> 'agent_id', run.data ->> 'team_id', run.data ->> 'workflow_id', run.data ->> 'user_id',
        run.data ->> 'parent_run_id', run.data ->> 'status',
        (
            select coalesce(max(earlier.run_index), number_of_agno_2_runs(entry.session ->> 'session_id') - 1)
            from agno_runs as earlier
            where earlier.session_id = entry.session ->> 'session_id'
        ) + run.number,
        run.data, (run.data ->> 'created_at')::bigint, (entry.session ->> 'ended')::bigint
    from jsonb_to_recordset(turns) as entry ("position" integer, session jsonb, runs jsonb),
         rows from (jsonb_to_recordset(entry.runs) as (type varchar, data jsonb)) with ordinality
             as run (type, data, number)
    where entry."position" = any (stored)
    order by run.data ->> 'run_id';

    perform store_receipts(
        (
            select coalesce(jsonb_agg(entry.receipt || jsonb_build_object('position', entry."position")), '[]')
            from jsonb_to_recordset(turns) as entry ("position" integer, receipt jsonb)
            where entry."position" = any (stored)
        ),
        replies
    );

    return query
    select
        entry."position",
        case
            when entry."position" = any (stored) then 'committed'
            when entry.turn_seq is not null and not exists (
                select from agno_sessions as session
                where session.session_id = entry.session ->> 'session_id'
            ) then 'deleted'
            else 'stale'
        end
    from jsonb_to_recordset(turns) as entry ("position" integer, turn_seq bigint, session jsonb);
end;
$$;
