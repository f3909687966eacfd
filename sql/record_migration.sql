-- Records a migration. teamturn 0.1.0 knows version 10, looks at teamturn_migrations alone, and does not start where that has
-- a newer one: there is nothing in it that 0.1.0 can do without.
-- $1 integer: version; $2 text: name; $3 integer: the version that it is compatible with, or null.
with compatible as (
    insert into teamturn_compatible_migrations (version, name, compatible_with)
    select $1::integer, $2::varchar, $3::integer
    where $3::integer is not null
)
insert into teamturn_migrations (version, name)
select $1::integer, $2::varchar
where $3::integer is null or $3::integer > 10;
