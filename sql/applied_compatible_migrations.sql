-- Reads which migrations were applied that older programs can do without. One row a migration: version, compatible_with.
select version, compatible_with from teamturn_compatible_migrations order by version;
