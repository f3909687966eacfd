-- What answers a redelivery, what counts starts, what all workers of a prefix agree on; and the two functions
-- that claim and commit turns.

-- One row a finished or refused run. `reply` is bytea and not jsonb: jsonb does not give back the bytes it got.
create table receipts (
    run_id       varchar primary key,
    session_id   varchar not null,
    user_id      varchar,
    target_type  varchar not null,
    target_id    varchar not null,
    fingerprint  bytea not null,
    status       varchar not null,
    reply        bytea not null,
    created_at   timestamptz not null default now()
);

-- How often a run was started; dropped with the commit. A first start is recorded once it has lasted a moment, a
-- redelivered one before anything else.
create table turn_attempts (
    run_id      varchar primary key,
    attempts    integer not null,
    started_at  timestamptz not null default now()
);

create table fleet_settings (
    prefix      varchar primary key,
    partitions  integer not null,
    prefetch    integer not null
);

-- The advisory lock of a session: 64 bits of (schema, session).
create function session_lock_key(session_id text) returns bigint
language sql stable
return hashtextextended(session_id, hashtextextended(current_schema(), 0));

-- Locks the sessions of some requests and reads what each turn needs. One row a request, in no given order.
--   requests: [{"position", "run_id", "session_id", "history_runs" (null: all)}]
-- It must stay VOLATILE with the lock in a statement before the read: a statement's snapshot is older than the
-- lock it takes, and would show the session as it was before the last holder's commit.
create function claim_turns(requests jsonb)
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
        exists (select from agno_runs as run where run.run_id = request.run_id),
        session.session_id is not null,
        session.session_type,
        coalesce(session.team_id, session.agent_id, session.workflow_id),
        session.user_id,
        session.session_data,
        session.metadata,
        session.summary,
        session.turn_seq,
        last_runs.history
    from jsonb_to_recordset(requests) as request (
        "position" integer, run_id varchar, session_id varchar, history_runs bigint
    )
    left join receipts as receipt on receipt.run_id = request.run_id
    left join agno_sessions as session
        on session.session_id = request.session_id and request."position" = any (held)
    left join lateral (
        select jsonb_agg(run.run_data order by run.run_index, run.created_at, run.run_id) as history
        from (
            select completed.run_data, completed.run_index, completed.created_at, completed.run_id
            from agno_runs as completed
            where completed.session_id = session.session_id
              and completed.status = 'COMPLETED'
              and completed.parent_run_id is null
            order by completed.run_index desc, completed.created_at desc, completed.run_id desc
            limit request.history_runs
        ) as run
    ) as last_runs on receipt.run_id is null;
end;
$$;

-- What other programs leave where an object or a count should be (null, an array, 1.5) must not fail a commit.
create function object_of(found jsonb) returns jsonb
language sql immutable
return case jsonb_typeof(found) when 'object' then found else '{}' end;

create function count_of(found jsonb) returns numeric
language sql immutable
return case jsonb_typeof(found) when 'number' then trunc(found::numeric) else 0 end;

-- A session's data after a turn: the keys that a turn owns are merged into what is there, so that a name or
-- another program's key survives. `state` null: the state stays as it is.
create function merge_session_data(stored jsonb, state jsonb, tokens jsonb) returns jsonb
language sql immutable
as $$
    select base.data
        || jsonb_build_object('session_state', coalesce(state, object_of(base.data -> 'session_state')))
        || jsonb_build_object(
            'session_metrics',
            '{"details": {}}' || metrics.stored || (
                select jsonb_object_agg(name, count_of(metrics.stored -> name) + count_of(tokens -> name))
                from unnest(array['input_tokens', 'output_tokens', 'total_tokens']) as name
            )
        )
    from (select object_of(stored) as data) as base,
    lateral (select object_of(base.data -> 'session_metrics') as stored) as metrics;
$$;

-- Commits finished turns, each of another session whose lock this connection holds: the session row merged, the
-- runs appended, the receipt with the reply's bytes, the attempts dropped. One row a turn:
--   committed  all of it is stored
--   deleted    the session was deleted since the claim: nothing is stored, and it is not resurrected
--   stale      somebody else wrote the session since the claim: nothing is stored; claim again
-- turns: [{"position", "session", "turn_seq" (null: the claim saw no session), "runs", "receipt"}]
create function commit_turns(turns jsonb, replies bytea[])
returns table ("position" integer, outcome text)
language plpgsql volatile
as $$
declare
    stored integer[];
begin
    with turn as (
        select entry."position", entry.turn_seq, s.*
        from jsonb_to_recordset(turns) as entry ("position" integer, turn_seq bigint, session jsonb),
             jsonb_to_record(entry.session) as s (
                 session_id varchar, session_type varchar, agent_id varchar, team_id varchar,
                 workflow_id varchar, user_id varchar, session_state jsonb, tokens jsonb,
                 agent_data jsonb, team_data jsonb, workflow_data jsonb, metadata jsonb,
                 started bigint, ended bigint
             )
    ),
    updated as (
        update agno_sessions as session
        set session_data = merge_session_data(session.session_data, turn.session_state, turn.tokens),
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
        where session.session_id = turn.session_id and session.turn_seq = turn.turn_seq
        returning turn."position"
    ),
    inserted as (
        insert into agno_sessions (
            session_id, session_type, agent_id, team_id, workflow_id, user_id, session_data,
            agent_data, team_data, workflow_data, metadata, created_at, updated_at, turn_seq
        )
        select
            turn.session_id, turn.session_type, turn.agent_id, turn.team_id, turn.workflow_id, turn.user_id,
            merge_session_data(null, turn.session_state, turn.tokens),
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

-- Stores the answers of finished or refused runs, and drops their attempts.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status"}]; replies: the replies' bytes, by position from 1
create function store_receipts(entries jsonb, replies bytea[]) returns void
language sql volatile
as $$
    delete from turn_attempts as attempt
    using jsonb_to_recordset(entries) as entry (run_id varchar)
    where attempt.run_id = entry.run_id;

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
$$;
