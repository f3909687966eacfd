-- Tells by which version of TLS this connection is encrypted, as Postgres sees it. One row: protocol (null: it is not).
select case when encryption.ssl then encryption.version end as protocol
from pg_stat_ssl as encryption
where encryption.pid = pg_backend_pid();
