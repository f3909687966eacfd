-- Looks whether the schema and its tables of migrations are there.
-- $1 text: schema. One row: schema_exists, table_exists, compatible_exists.
select
    exists (select from pg_namespace where nspname = $1) as schema_exists,
    exists (
        select from pg_class as class join pg_namespace as schema on schema.oid = class.relnamespace
        where schema.nspname = $1 and class.relname = 'teamturn_migrations'
    ) as table_exists,
    exists (
        select from pg_class as class join pg_namespace as schema on schema.oid = class.relnamespace
        where schema.nspname = $1 and class.relname = 'teamturn_compatible_migrations'
    ) as compatible_exists;
