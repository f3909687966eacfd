-- Reads what tells a direct connection from a pooled one.
-- One row: pid (of the process that serves this statement), idle_session_timeout, over_tcp.
select
    pg_backend_pid() as pid,
    current_setting('idle_session_timeout') as idle_session_timeout,
    inet_client_addr() is not null as over_tcp;
