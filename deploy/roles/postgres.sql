-- Four roles for one schema of teamturn, each with what it needs and nothing else. For psql, as a superuser or as one who may
-- make roles and owns the database:
--
--   psql DATABASE_URL -v schema=ai -f deploy/roles/postgres.sql
--
--   teamturn_owner     `teamturn migrate`: owns the schema and all in it
--   teamturn_worker    `teamturn worker`: takes turns; can't delete a session, change a stored run, or alter a table
--   teamturn_operator  `teamturn sessions rename, delete, prune`, `teamturn dead replay`: changes rows, and no tables
--   teamturn_reader    `teamturn sessions list, show, who, export`, AgentOS to look at: changes nothing
--
-- Run it before the first `teamturn migrate`, and once more after it: by then it can take from workers what they need not do to
-- single tables. Later migrations need no further run. Other names: -v owner=… -v worker=… -v operator=… -v reader=…
-- The roles have no password: \password teamturn_worker gives one, certificates and cloud identities need none.
--
-- What it does not do: take CONNECT on the database from everybody (PUBLIC has it unless you revoked it). Do that, or give teamturn
-- a database of its own: whoever connects can take a session's advisory lock and so keep its turns from being taken.

\set ON_ERROR_STOP on
\if :{?schema} \else \set schema ai \endif
\if :{?owner} \else \set owner teamturn_owner \endif
\if :{?worker} \else \set worker teamturn_worker \endif
\if :{?operator} \else \set operator teamturn_operator \endif
\if :{?reader} \else \set reader teamturn_reader \endif

begin;

select format('create role %I login', name)
from unnest(array[:'owner', :'worker', :'operator', :'reader']) as name
where not exists (select from pg_roles where rolname = name)
\gexec

select format('grant connect on database %I to %I', current_database(), name)
from unnest(array[:'owner', :'worker', :'operator', :'reader']) as name
\gexec

-- A superuser may make a schema for anybody, others only for a role that they are a member of.
select format('grant %I to current_user', :'owner')
where not pg_has_role(:'owner', 'member')
\gexec
create schema if not exists :"schema" authorization :"owner";

grant usage on schema :"schema" to :"worker", :"operator", :"reader";

-- What the owner makes from now on: the tables of the first and of each later migration.
alter default privileges for role :"owner" in schema :"schema"
    grant select, insert, update, delete on tables to :"worker", :"operator";
alter default privileges for role :"owner" in schema :"schema" grant select on tables to :"reader";

-- What is there already.
grant select, insert, update, delete on all tables in schema :"schema" to :"worker", :"operator";
grant select on all tables in schema :"schema" to :"reader";

-- What is written once: a worker adds to it. Sessions are deleted, and failed runs reopened, by the operator.
select format('revoke %s on %I.%I from %I', rights, :'schema', name, :'worker')
from (values
    ('delete, truncate', 'agno_sessions'),
    ('update, delete', 'agno_runs'),
    ('update, delete', 'receipts'),
    ('delete', 'fleet_settings'),
    ('delete', 'fleet_assignments'),
    ('insert, update, delete', 'agno_schema_versions')
) as taken (rights, name)
where to_regclass(format('%I.%I', :'schema', name)) is not null
\gexec
select format('revoke insert, update, delete on %I.%I from %I', :'schema', made, name)
from unnest(array[:'worker', :'operator']) as name,
    unnest(array['teamturn_migrations', 'teamturn_compatible_migrations']) as made
where to_regclass(format('%I.%I', :'schema', made)) is not null
\gexec

commit;
