-- Reads runs as they are stored, each after the members' runs below it; of very long ones the last that fit.
-- $1 jsonb: [{"position", "session_id", "run_ids"}], runs of the session itself; $2 bigint: of so many bytes at most.
-- One row a run, in the session's order: position, run_data.
with recursive wanted as materialized (
    select entry."position", entry.session_id, run.run_id, run.run_index
    from jsonb_to_recordset($1::jsonb) as entry ("position" integer, session_id varchar, run_ids jsonb),
         jsonb_array_elements_text(entry.run_ids) as asked (run_id),
         lateral (select * from agno_runs as stored where stored.run_id = asked.run_id limit 1) as run
    where run.session_id = entry.session_id
),
-- Members' runs have lower indexes than the run they belong to, and higher ones than the run before that: of a long
-- session only so much is looked at.
span as (
    select
        wanted."position",
        wanted.session_id,
        (
            select coalesce(max(earlier.run_index), -1)
            from agno_runs as earlier
            where earlier.session_id = wanted.session_id
              and earlier.status = 'COMPLETED'
              and earlier.parent_run_id is null
              and earlier.run_index < min(wanted.run_index)
        ) as after_index,
        max(wanted.run_index) as up_to_index
    from wanted
    group by wanted."position", wanted.session_id
),
nearby as materialized (
    select span."position", run.run_id, run.parent_run_id
    from span, agno_runs as run
    where run.session_id = span.session_id and run.run_index > span.after_index and run.run_index <= span.up_to_index
),
found as (
    select wanted."position", wanted.run_id from wanted
    union
    select nearby."position", nearby.run_id
    from found
    join nearby on nearby."position" = found."position" and nearby.parent_run_id = found.run_id
),
sized as (
    select
        found."position",
        run.run_index,
        run.created_at,
        run.run_id,
        run.run_data,
        sum(octet_length(run.run_data::text)) over (
            partition by found."position"
            order by run.run_index desc, run.created_at desc, run.run_id desc
        ) as bytes_from_here
    from found,
         lateral (select * from agno_runs as stored where stored.run_id = found.run_id limit 1) as run
)
select "position", run_data
from sized
where bytes_from_here <= $2
order by "position", run_index, created_at, run_id;
