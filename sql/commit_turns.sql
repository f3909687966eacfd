-- Commits finished turns in one transaction; see the function in migrations/.
-- $1 jsonb: [{"position", "session", "turn_seq", "runs", "receipt"}]; $2 bytea[]: the replies, by position from 1.
-- One row a turn: position, outcome (committed, deleted or stale).
select "position", outcome from commit_turns($1::jsonb, $2::bytea[]);
