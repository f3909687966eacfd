-- Names, sums and summaries of sessions.

-- The run_index up to which the session's summary covers its runs. Not inside `summary`: Agno fails on keys that it
-- does not know there.
alter table agno_sessions add column if not exists summary_run_index bigint;

-- What histories and summaries are made of. A session whose last runs failed, or are members', has its completed ones
-- at hand: behind 5,000 failed ones, a claim passed over all of them.
create index if not exists agno_runs_completed on agno_runs (session_id, run_index, created_at, run_id)
where status = 'COMPLETED' and parent_run_id is null;

-- Up to which run_index a session's summary covers its runs: none, if another program took the summary away.
create function summarized_up_to(summary jsonb, summary_run_index bigint) returns bigint
language sql immutable
return case when jsonb_typeof(summary -> 'summary') = 'string' then coalesce(summary_run_index, -1) else -1 end;

-- How many completed runs of a session a turn is given: those after its summary, if it keeps one, and at least
-- `asked` (null: all). At most 20 beyond those asked for are made up for, so that a turn's cost stays what it is
-- where no summary gets written.
create function history_length(of_session varchar, asked bigint, covered bigint, summarized boolean) returns bigint
language plpgsql stable
as $$
begin
    if asked is null or not summarized then
        return asked;
    end if;
    return greatest(asked, (
        select count(*) from (
            select from agno_runs as run
            where run.session_id = of_session
              and run.run_index > covered
              and run.status = 'COMPLETED'
              and run.parent_run_id is null
            order by run.run_index desc
            limit asked + 20
        ) as uncovered
    ));
end;
$$;

-- What a turn is shown of a run, and how long that is as text; the rest of the run can be large. One row, of nulls for
-- what is no object. Each "->" would unpack all of it: three runs of 3.4 MB took 8 ms, and take 2. As a table it is
-- inlined; without the offset, what is shown would be made twice.
create function run_as_history(run_data jsonb) returns table (shown jsonb, bytes integer)
language sql immutable
as $$
    select history.shown, octet_length(history.shown::text)
    from (
        select jsonb_build_object(
            'run_id', run.run_id, 'input', run.input, 'content', run.content, 'created_at', run.created_at
        ) as shown
        from jsonb_to_record(jsonb_path_query_first(run_data, 'strict $ ? (@.type() == "object")'))
            as run (run_id jsonb, input jsonb, content jsonb, created_at jsonb)
        offset 0
    ) as history;
$$;

-- The last completed runs of a session, oldest first: at most `most` (null: all), and as many as fit into so many
-- bytes, though one at least. A jsonb array of more than 256 MB is an error, and the session would be lost for good.
-- A loop over a cursor fetches one row at a time: what does not fit any more is not unpacked.
create function last_runs_within(of_session varchar, most bigint, most_bytes bigint) returns jsonb
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
    bytes bigint := 0;
    runs jsonb[] := '{}';
begin
    for run in newest_first loop
        bytes := bytes + run.bytes;
        exit when bytes > most_bytes and runs <> '{}';
        runs := array_prepend(run.shown, runs);
    end loop;
    return to_jsonb(runs);
end;
$$;

-- Locks the sessions of some requests and reads what each turn needs. One row a request, in no given order.
--   requests: [{"position", "run_id", "session_id", "history_runs" (null: all), "summarized"}]
-- It must stay VOLATILE with the lock in a statement before the read: a statement's snapshot is older than the
-- lock it takes, and would show the session as it was before the last holder's commit.
create or replace function claim_turns(requests jsonb)
returns table (
    "position" integer,
    locked boolean,
    database_time timestamptz,
    receipt_session_id varchar,
    receipt_user_id varchar,
    receipt_target_type varchar,
    receipt_target_id varchar,
    receipt_fingerprint bytea,
    receipt_reply bytea,
    run_exists boolean,
    session_exists boolean,
    session_type varchar,
    target_id varchar,
    user_id varchar,
    session_data jsonb,
    metadata jsonb,
    summary jsonb,
    turn_seq bigint,
    history jsonb
)
language plpgsql volatile
-- Else it is planned for each claim anew where sessions are long, for nothing that planning could learn from `requests`:
-- 0.73 ms, not 0.44 (measured: sessions of 10,000 runs, analyzed).
set plan_cache_mode = force_generic_plan
as $$
declare
    held integer[];
begin
    held := array(
        select (request ->> 'position')::integer
        from jsonb_array_elements(requests) as request
        where pg_try_advisory_lock(session_lock_key(request ->> 'session_id'))
    );
    return query
    select
        request."position",
        request."position" = any (held),
        clock_timestamp(),
        receipt.session_id,
        receipt.user_id,
        receipt.target_type,
        receipt.target_id,
        receipt.fingerprint,
        receipt.reply,
        same_run.run_id is not null,
        session.session_id is not null,
        session.session_type,
        coalesce(session.team_id, session.agent_id, session.workflow_id),
        session.user_id,
        session.session_data,
        session.metadata,
        case when request.summarized then session.summary end,
        session.turn_seq,
        case when receipt.run_id is null and session.session_id is not null then last_runs_within(
            session.session_id,
            history_length(
                session.session_id,
                request.history_runs,
                summarized_up_to(session.summary, session.summary_run_index),
                coalesce(request.summarized, false)  -- a worker of before this migration does not say
            ),
            16 * 1024 * 1024  -- as much as a reply or two: a turn's worker parses it while others wait
        ) end
    from jsonb_to_recordset(requests) as request (
        "position" integer, run_id varchar, session_id varchar, history_runs bigint, summarized boolean
    )
    -- Each by its index, for each request: "limit 1" keeps the planner, which takes a batch for a hundred requests
    -- whatever its size, from reading the whole table instead (seen for agno_runs of 10,000 rows: 2.0 ms, not 0.3).
    left join lateral (
        select * from receipts as stored where stored.run_id = request.run_id limit 1
    ) as receipt on true
    left join lateral (
        select stored.run_id from agno_runs as stored where stored.run_id = request.run_id limit 1
    ) as same_run on true
    left join lateral (
        select * from agno_sessions as stored where stored.session_id = request.session_id limit 1
    ) as session on request."position" = any (held);
end;
$$;

-- A session's data after a turn: the keys that a turn owns are merged into what is there, so that a name or
-- another program's key survives. `state` null: the state stays as it is; `name` null: so does the name. `usage`:
-- what the turn used, summed up in the session's metrics.
create function merge_session_data(stored jsonb, state jsonb, name text, usage jsonb) returns jsonb
language plpgsql immutable  -- whose expressions are prepared once a connection; as SQL, in each commit
as $$
declare
    data jsonb := object_of(stored);
    metrics jsonb := '{"details": {}}' || object_of(data -> 'session_metrics');
begin
    metrics := metrics || jsonb_build_object(
        'input_tokens', count_of(metrics -> 'input_tokens') + count_of(usage -> 'input_tokens'),
        'output_tokens', count_of(metrics -> 'output_tokens') + count_of(usage -> 'output_tokens'),
        'total_tokens', count_of(metrics -> 'total_tokens') + count_of(usage -> 'total_tokens'),
        'model_requests', count_of(metrics -> 'model_requests') + count_of(usage -> 'model_requests'),
        'tool_calls', count_of(metrics -> 'tool_calls') + count_of(usage -> 'tool_calls')
    );
    if name is not null then
        data := data || jsonb_build_object('session_name', name);
    end if;
    return data || jsonb_build_object(
        'session_state', coalesce(state, object_of(data -> 'session_state')), 'session_metrics', metrics
    );
end;
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
            select coalesce(max(earlier.run_index), -1)
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

drop function merge_session_data(jsonb, jsonb, jsonb);

-- Of the last `reach` completed runs of a session after a run_index, the oldest `most`, oldest first, and the run_index of
-- each: as many as fit into so many bytes, though one at least. As above, what does not fit is not unpacked.
create function runs_after(
    of_session varchar, after_index bigint, reach bigint, most bigint, most_bytes bigint,
    out runs jsonb, out run_indexes bigint[]
)
language plpgsql stable
as $$
declare
    oldest_first cursor for
        select run_as.shown, run_as.bytes, run.run_index
        from (
            select later.run_data, later.run_index
            from (
                select completed.run_data, completed.run_index
                from agno_runs as completed
                where completed.session_id = of_session
                  and completed.run_index > after_index
                  and completed.status = 'COMPLETED'
                  and completed.parent_run_id is null
                order by completed.run_index desc
                limit reach
            ) as later
            order by later.run_index
            limit most
        ) as run,
        run_as_history(run.run_data) as run_as
        order by run.run_index;
    bytes bigint := 0;
    fitting jsonb[] := '{}';
begin
    run_indexes := '{}';
    for run in oldest_first loop
        bytes := bytes + run.bytes;
        exit when bytes > most_bytes and fitting <> '{}';
        fitting := array_append(fitting, run.shown);
        run_indexes := array_append(run_indexes, run.run_index);
    end loop;
    runs := to_jsonb(fitting);
end;
$$;

-- Reads what the summaries of some sessions lack. One row a session that exists, in no given order: of the last
-- `reach` completed runs after those that a summary covers, the oldest `most`, and the run_index of each.
--   entries: [{"position", "session_id", "after" (null: only what is covered is left out, else up to it)}]
--   most_bytes: of the runs as they are shown, though one at least
create function runs_to_summarize(entries jsonb, most bigint, reach bigint, most_bytes bigint)
returns table ("position" integer, summary jsonb, runs jsonb, run_indexes bigint[])
language sql stable
as $$
    select entry."position", session.summary, later.runs, later.run_indexes
    from jsonb_to_recordset(entries) as entry ("position" integer, session_id varchar, "after" bigint),
    lateral (select * from agno_sessions as stored where stored.session_id = entry.session_id limit 1) as session,
    lateral runs_after(
        session.session_id,
        greatest(summarized_up_to(session.summary, session.summary_run_index), entry."after"),
        reach, most, most_bytes
    ) as later;
$$;

-- Stores summaries, each of another session, and adds what they cost to the session's metrics. It needs no lock of
-- the session: a summary that covers less than the stored one changes nothing, nor does one of a deleted session.
--   entries: [{"session_id", "summary", "up_to", "usage"}]
create function store_summaries(entries jsonb) returns void
language plpgsql volatile
as $$
declare
    sessions varchar[] := array(select entry ->> 'session_id' from jsonb_array_elements(entries) as entry);
begin
    perform from agno_sessions as session
    where session.session_id = any (sessions)
    order by session.session_id
    for no key update;

    update agno_sessions as session
    set summary = entry.summary,
        summary_run_index = entry.up_to,
        session_data = merge_session_data(session.session_data, null, null, entry.usage)
    from jsonb_to_recordset(entries) as entry (session_id varchar, summary jsonb, up_to bigint, usage jsonb)
    where session.session_id = any (sessions)
      and session.session_id = entry.session_id and summarized_up_to(session.summary, session.summary_run_index) < entry.up_to;
end;
$$;

-- Stores the answers of finished or refused runs, and drops their attempts.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status"}]; replies: the replies' bytes, by position from 1
create or replace function store_receipts(entries jsonb, replies bytea[]) returns void
language plpgsql volatile  -- whose plans are kept: as SQL it was planned in each commit (0.25 ms, then 0.05)
as $$
begin
    delete from turn_attempts as attempt
    where attempt.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

    insert into receipts (
        run_id, session_id, user_id, target_type, target_id, fingerprint, status, reply
    )
    select
        entry.run_id, entry.session_id, entry.user_id, entry.target_type, entry.target_id,
        decode(entry.fingerprint, 'hex'), entry.status, replies[entry."position"]
    from jsonb_to_recordset(entries) as entry (
        "position" integer, run_id varchar, session_id varchar, user_id varchar, target_type varchar,
        target_id varchar, fingerprint varchar, status varchar
    )
    -- Two batches may hold the same run_ids, of different sessions; in one order they can't deadlock.
    order by entry.run_id;
end;
$$;
