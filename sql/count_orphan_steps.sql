-- Counts the rows of the journal, older than an hour, of runs that are neither started nor paused. It reads all of them
-- once, without what they hold; see worker.fleet.readings.
-- One row: steps.
select count(*) as steps
from turn_steps as step
where step.recorded_at < now() - interval '1 hour'
  and not exists (select from turn_attempts as attempt where attempt.run_id = step.run_id)
  and not exists (select from paused_runs as paused where paused.run_id = step.run_id)
  and not exists (select from paused_runs as paused where paused.continued_by = step.run_id);
