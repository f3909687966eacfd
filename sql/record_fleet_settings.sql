-- Records what all workers of a prefix must share, at the first start, and reads what is recorded.
-- $1 text: prefix; $2 integer: partitions; $3 integer: prefetch. One row: partitions, prefetch, is_new.
insert into fleet_settings as recorded (prefix, partitions, prefetch)
values ($1, $2, $3)
on conflict (prefix) do update set prefix = excluded.prefix
returning partitions, prefetch, xmax = 0 as is_new;
