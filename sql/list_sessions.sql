-- Lists sessions, a page at a time.
-- Those of a user ($1 text), a type ($2 text), a target ($3 text), active since ($4 bigint, unix seconds), with this in their
-- name or id ($5 text); null: any. $6 text: sorted by active (latest first), created (latest first) or name. $7 bigint: how many
-- at most (null: all); $8 bigint: after so many. One row a session: session_id, session_type, target_id, user_id, name, runs
-- (members' runs not counted), tokens, created_at, updated_at.
with page as (
    select
        session.session_id,
        session.session_type,
        coalesce(session.team_id, session.agent_id, session.workflow_id) as target_id,
        session.user_id,
        session.session_data ->> 'session_name' as name,
        count_of(session.session_data -> 'session_metrics' -> 'total_tokens')::bigint as tokens,
        session.created_at,
        session.updated_at,
        row_number() over (
            order by
                case $6 when 'name' then lower(session.session_data ->> 'session_name') end nulls last,
                case $6 when 'created' then session.created_at
                        else coalesce(session.updated_at, session.created_at) end desc,
                session.session_id
        ) as number
    from agno_sessions as session
    where ($1::text is null or session.user_id = $1)
      and ($2::text is null or session.session_type = $2)
      and ($3::text is null or coalesce(session.team_id, session.agent_id, session.workflow_id) = $3)
      and ($4::bigint is null or coalesce(session.updated_at, session.created_at) >= $4)
      and (
          $5::text is null
          or strpos(lower(session.session_data ->> 'session_name'), lower($5)) > 0
          or strpos(lower(session.session_id), lower($5)) > 0
      )
    order by number
    limit $7 offset $8
)
select
    page.session_id,
    page.session_type,
    page.target_id,
    page.user_id,
    page.name,
    (select count(*) from agno_runs as run where run.session_id = page.session_id and run.parent_run_id is null)
    + (select count(*) from agno_2_runs(page.session_id) as old where old.run_data ->> 'parent_run_id' is null) as runs,
    page.tokens,
    page.created_at,
    page.updated_at
from page
order by page.number;
