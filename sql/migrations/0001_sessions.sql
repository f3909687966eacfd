-- The tables that Agno 3 reads and writes, and the view of the fifteen documented columns.
-- A database that Agno made already has the tables: they are kept, and get what is missing.

create table if not exists agno_sessions (
    session_id     varchar primary key,
    session_type   varchar not null,
    agent_id       varchar,
    team_id        varchar,
    workflow_id    varchar,
    user_id        varchar,
    session_data   jsonb,
    agent_data     jsonb,
    team_data      jsonb,
    workflow_data  jsonb,
    metadata       jsonb,
    summary        jsonb,
    created_at     bigint not null,
    updated_at     bigint
)
-- Room in each page, and no index on what a turn changes: the update of a session is then a HOT update.
with (fillfactor = 70);

-- Counts the session's turns, and is compared at commit.
alter table agno_sessions add column if not exists turn_seq bigint not null default 0;

-- `sessions list` and Agno's lists go by the time of creation; Agno's own index on session_type has three
-- values and would never be used.
create index if not exists agno_sessions_created_at on agno_sessions (created_at);
create index if not exists agno_sessions_user_id on agno_sessions (user_id);

create table if not exists agno_runs (
    run_id         varchar primary key,
    session_id     varchar not null references agno_sessions (session_id) on delete cascade,
    run_type       varchar not null,
    agent_id       varchar,
    team_id        varchar,
    workflow_id    varchar,
    user_id        varchar,
    parent_run_id  varchar,
    status         varchar,
    run_index      bigint,
    run_data       jsonb not null,
    created_at     bigint not null,
    updated_at     bigint
);

-- A session's runs in the order in which every reader sorts them: the claim reads the last few backwards, the
-- commit the highest index, the view and Agno all of them. Agno's eight single-column indexes are left out: no
-- reader of ours or of AgentOS filters runs by anything but the session and the run_id.
create index if not exists agno_runs_in_order on agno_runs (session_id, run_index, created_at, run_id);

-- Without these two rows Agno takes the tables for those of version 2.0.0 and migrates them.
create table if not exists agno_schema_versions (
    table_name  varchar primary key,
    version     varchar,
    created_at  varchar,
    updated_at  varchar
);
insert into agno_schema_versions (table_name, version, created_at, updated_at)
select name, '3.0.0', stamp, stamp
from unnest(array['agno_sessions', 'agno_runs']) as name,
     to_char(now() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"') as stamp
on conflict (table_name) do nothing;

create view sessions as
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
    coalesce(
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
