-- Asks for a sign of life, so that only a worker that is frozen or cut off stays idle for idle_session_timeout.
select 1;
