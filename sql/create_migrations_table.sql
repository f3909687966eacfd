-- Makes the table that says which migrations were applied.
create table if not exists teamturn_migrations (
    version     integer primary key,
    name        varchar not null,
    applied_at  timestamptz not null default now()
);
