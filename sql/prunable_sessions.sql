-- Lists sessions whose last turn was before a moment, a page at a time; not those of which something is unfinished.
-- Before $1 bigint (unix seconds), of a user ($2 text), a type ($3 text), a target ($4 text); null: any. After $5 bigint, $6 text
-- (created_at and session_id of the last one of the page before; null: from the beginning); $7 bigint: how many at most.
-- One row a session: session_id, created_at. A session is made before its last turn: the index on created_at serves, and
-- updated_at, which each turn changes, needs none.
select session.session_id, session.created_at
from agno_sessions as session
where session.created_at < $1
  and coalesce(session.updated_at, session.created_at) < $1
  and ($5::bigint is null or (session.created_at, session.session_id) > ($5, $6::text))
  and ($2::text is null or session.user_id = $2)
  and ($3::text is null or session.session_type = $3)
  and ($4::text is null or coalesce(session.team_id, session.agent_id, session.workflow_id) = $4)
  and session.session_id not in (select unfinished.session_id from unfinished_sessions($1) as unfinished)
order by session.created_at, session.session_id
limit $7;
