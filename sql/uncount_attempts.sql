-- Records that some starts were ended by a worker that stops: they do not count as fruitless.
-- $1 text[]: run ids. No rows.
update turn_attempts as attempt
set uncounted = attempt.uncounted + 1
where attempt.run_id = any ($1::text[]);
