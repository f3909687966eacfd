-- Makes the tables that say which migrations were applied.
create table if not exists teamturn_migrations (
    version     integer primary key,
    name        varchar not null,
    applied_at  timestamptz not null default now()
);
-- Those that older programs can do without: every program that knows `compatible_with` works on a schema that has them.
create table if not exists teamturn_compatible_migrations (
    version          integer primary key,
    name             varchar not null,
    compatible_with  integer not null,
    applied_at       timestamptz not null default now()
);
