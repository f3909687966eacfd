-- Records what all workers of a prefix must share, at the first start, and reads what is recorded.
-- $1 text: prefix; $2 integer: partitions; $3 integer: prefetch. One row: is_new, and what read_fleet_settings.sql reads.
insert into fleet_settings as recorded (prefix, partitions, prefetch)
values ($1, $2, $3)
on conflict (prefix) do update set prefix = excluded.prefix
returning partitions, prefetch, to_partitions, to_prefetch, phase, xmax = 0 as is_new;
