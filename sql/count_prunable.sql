-- Counts what pruning would delete, and how many bytes that takes as it is stored; nothing is changed.
-- Before $1 bigint (unix seconds), of a user ($2 text), a type ($3 text), a target ($4 text); null: any.
-- One row: sessions, runs, receipts, bytes.
with session as materialized (
    select
        old.session_id,
        coalesce(pg_column_size(old.session_data), 0) + coalesce(pg_column_size(old.summary), 0)
        + coalesce(pg_column_size(old.metadata), 0) as size
    from agno_sessions as old
    where old.created_at < $1
      and coalesce(old.updated_at, old.created_at) < $1
      and ($2::text is null or old.user_id = $2)
      and ($3::text is null or old.session_type = $3)
      and ($4::text is null or coalesce(old.team_id, old.agent_id, old.workflow_id) = $4)
      and old.session_id not in (select unfinished.session_id from unfinished_sessions($1) as unfinished)
),
run as (
    select count(*) as number, coalesce(sum(pg_column_size(stored.run_data)), 0) as size
    from session join agno_runs as stored on stored.session_id = session.session_id
),
receipt as (
    select count(*) as number, coalesce(sum(pg_column_size(stored.reply)), 0) as size
    from receipts as stored
    where stored.created_at < to_timestamp($1)
      and (
          exists (select from session where session.session_id = stored.session_id)
          or (
              not exists (select from agno_sessions as there where there.session_id = stored.session_id)
              and ($2::text is null or stored.user_id = $2)
              and ($3::text is null or stored.target_type = $3)
              and ($4::text is null or stored.target_id = $4)
          )
      )
)
select
    (select count(*) from session) as sessions,
    run.number as runs,
    receipt.number as receipts,
    ((select coalesce(sum(session.size), 0) from session) + run.size + receipt.size)::bigint as bytes
from run, receipt;
