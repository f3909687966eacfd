-- Reads which migrations were applied. One row a migration: version.
select version from teamturn_migrations order by version;
