-- Reads Postgres's clock. One row: now.
select clock_timestamp() as now;
