-- Makes way for another attempt of a run that is stored as ERROR; see the function in migrations/.
-- $1 text: run_id; $2 text: session_id; $3 text: user_id or null; $4, $5 text: type and id of the target; $6 bytea: the
-- request's fingerprint. One row: outcome (unknown, answered, foreign, busy or reopened), attempt, session_exists.
select outcome, attempt, session_exists from reopen_run($1, $2, $3, $4, $5, $6);
