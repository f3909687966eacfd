-- Records that some starts did not cost their worker its life: they do not count as fruitless.
-- $1 text[]: run ids. No rows.
update turn_attempts as attempt
set uncounted = least(attempt.uncounted + 1, attempt.attempts)
where attempt.run_id = any ($1::text[]);
