-- The journal of a turn: what its model calls and tool calls came to, so that a redelivered run does not make them again.

-- A row a step; a run's rows live until its commit. `record` is the step's result, with the change it made to the session
-- state, as JSON in bytea: jsonb would give back another text, and a resumed turn would ask something else.
create table turn_steps (
    run_id         varchar not null,
    request        bytea not null,  -- its fingerprint: a run_id that somebody else uses as well has another journal
    key            varchar not null,
    seq            integer not null,
    attempt        integer not null,
    state          varchar not null,  -- started, not_made, done or failed
    asked          bytea,
    record         bytea,
    input_tokens   integer not null default 0,
    output_tokens  integer not null default 0,
    recorded_at    timestamptz not null default now(),
    primary key (run_id, request, key)
);

-- Starts that do not count as fruitless, though no step was recorded: a worker that was told to stop ended them.
alter table turn_attempts add column if not exists uncounted integer not null default 0;

-- How often a run was started, as far as recorded, and how many of these starts came to nothing: no step was recorded, and
-- no worker that stops ended them.
create function attempts_of(of_run varchar, of_request bytea, out attempts integer, out fruitless integer)
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
    where step.run_id = of_run and step.request = of_request and step.state in ('done', 'failed');
    -- A first start is recorded beside its execution: its first step may come before it.
    attempts := greatest(attempts, latest, 0);
    fruitless := greatest(attempts - coalesce(uncounted, 0) - fruitful, 0);
end;
$$;

-- Begins further attempts of runs, and returns what the earlier ones left. One row a run: how often it was started, this
-- start included; the steps and, by their positions from 1, their records; the history that the first attempt was given,
-- if that is recorded.
--   runs: [{"run_id", "session_id", "request" (hex), "outlived"}], each run once; outlived: how many of its attempts this worker
--   has outlived since it said so last: they are not fruitless
create function begin_attempts(runs jsonb, by_worker varchar)
returns table (run_id varchar, attempts integer, steps jsonb, records bytea[], history jsonb)
language plpgsql volatile
as $$
declare
    run record;
    known integer;
begin
    for run in
        select entry.run_id, entry.session_id, decode(entry.request, 'hex') as request, entry.outlived
        from jsonb_to_recordset(runs) as entry (
            run_id varchar, session_id varchar, request varchar, outlived integer
        )
        order by entry.run_id
    loop
        known := (select found.attempts from attempts_of(run.run_id, run.request) as found);
        insert into turn_attempts as attempt (run_id, attempts, session_id, worker)
        values (run.run_id, known + 1, run.session_id, by_worker)
        on conflict on constraint turn_attempts_pkey do update
        set attempts = known + 1,
            uncounted = least(attempt.uncounted + coalesce(run.outlived, 0), known),
            started_at = now(), session_id = excluded.session_id, worker = excluded.worker;

        begin_attempts.run_id := run.run_id;
        begin_attempts.attempts := known + 1;
        select
            jsonb_agg(
                jsonb_build_object(
                    'key', step.key, 'seq', step.seq, 'attempt', step.attempt, 'state', step.state,
                    'asked', encode(step.asked, 'hex'),
                    'input_tokens', step.input_tokens, 'output_tokens', step.output_tokens
                )
                order by step.seq, step.key
            ),
            array_agg(step.record order by step.seq, step.key)
        into begin_attempts.steps, begin_attempts.records
        from turn_steps as step
        where step.run_id = run.run_id and step.request = run.request;
        begin_attempts.history := (
            select runs_again(run.session_id, convert_from(step.record, 'UTF8')::jsonb -> 'history')
            from turn_steps as step
            where step.run_id = run.run_id and step.request = run.request and step.seq = 0
        );
        return next;
    end loop;
end;
$$;

-- Runs of a session as a turn was shown them before: those of these ids, oldest first. A deleted one is missing.
create function runs_again(of_session varchar, run_ids jsonb) returns jsonb
language sql stable
as $$
    select coalesce(jsonb_agg(run_as.shown order by run.run_index, run.created_at, run.run_id), '[]')
    from agno_runs as run, run_as_history(run.run_data) as run_as
    where run.run_id = any (array(select jsonb_array_elements_text(run_ids))) and run.session_id = of_session;
$$;

-- Records steps. A step that was started, or that asks something else than was recorded, is written over.
--   steps: [{"position", "run_id", "request" (hex), "key", "seq", "attempt", "state", "asked" (hex), "input_tokens",
--   "output_tokens"}], each key of a request once; records: by position from 1
create function record_steps(steps jsonb, records bytea[]) returns void
language plpgsql volatile
as $$
begin
    insert into turn_steps as stored (
        run_id, request, key, seq, attempt, state, asked, record, input_tokens, output_tokens
    )
    select
        step.run_id, decode(step.request, 'hex'), step.key, step.seq, step.attempt, step.state,
        decode(step.asked, 'hex'), records[step."position"], step.input_tokens, step.output_tokens
    from jsonb_to_recordset(steps) as step (
        "position" integer, run_id varchar, request varchar, key varchar, seq integer, attempt integer, state varchar,
        asked varchar, input_tokens integer, output_tokens integer
    )
    order by step.run_id, step.request, step.key
    on conflict on constraint turn_steps_pkey do update
    set seq = excluded.seq, attempt = excluded.attempt, state = excluded.state, asked = excluded.asked,
        record = excluded.record, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
        recorded_at = now();
end;
$$;

drop function claim_turns(jsonb);

-- Locks the sessions of some requests and reads what each turn needs. One row a request, in no given order.
--   requests: [{"position", "run_id", "session_id", "history_runs" (null: all), "summarized", "request" (hex)}]
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
    history jsonb,
    attempts integer,
    fruitless integer
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
        ) end,
        begun.attempts,
        begun.fruitless
    from jsonb_to_recordset(requests) as request (
        "position" integer, run_id varchar, session_id varchar, history_runs bigint, summarized boolean, request varchar
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
    ) as session on request."position" = any (held)
    left join lateral attempts_of(request.run_id, decode(request.request, 'hex')) as begun on receipt.run_id is null;
end;
$$;

-- Stores the answers of finished or refused runs, and drops their attempts and their journals.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status"}]; replies: the replies' bytes, by position from 1
create or replace function store_receipts(entries jsonb, replies bytea[]) returns void
language plpgsql volatile  -- whose plans are kept: as SQL it was planned in each commit (0.25 ms, then 0.05)
as $$
begin
    delete from turn_attempts as attempt
    where attempt.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

    delete from turn_steps as step
    where step.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

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
