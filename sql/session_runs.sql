-- Reads a session's runs, the latest first: a run before the members' runs that belong to it. $1 text: session_id.
-- One row a run: run_data.
select run.run_data
from agno_runs as run
where run.session_id = $1
order by run.run_index desc, run.created_at desc, run.run_id desc;
