-- Reads the runs that Agno 2 wrote into a session's row, the latest first. $1 text: session_id. One row a run: run_data.
select old.run_data from agno_2_runs($1) as old order by old.number desc;
