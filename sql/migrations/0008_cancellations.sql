-- Cancelling a run: running, waiting, or not asked for yet.

-- That a run is not wanted any more, from when it is said to when the run is answered. Only who names its session and user
-- can say so: others' sayings are beside it, and are nobody's. One that is never asked for is forgotten after a week.
create table cancellations (
    run_id         varchar not null,
    session_id     varchar not null,
    user_id        varchar,
    asked_at       timestamptz not null default now()
);
create unique index cancellations_of_runs on cancellations (run_id, session_id, coalesce(user_id, ''));
create index cancellations_by_age on cancellations (asked_at);

-- Records that runs are not wanted any more, and tells all workers; a run that is answered is left alone.
--   entries: [{"run_id", "session_id", "user_id"}]
create function cancel_runs(entries jsonb) returns void
language plpgsql volatile
as $$
begin
    delete from cancellations as cancelled
    where cancelled.ctid = any (array(
        select old.ctid from cancellations as old where old.asked_at < now() - interval '7 days' limit 1000
    ));
    insert into cancellations (run_id, session_id, user_id)
    select entry.run_id, entry.session_id, entry.user_id
    from jsonb_to_recordset(entries) as entry (run_id varchar, session_id varchar, user_id varchar)
    where not exists (select from receipts as receipt where receipt.run_id = entry.run_id)
    order by entry.run_id, entry.session_id, entry.user_id
    on conflict do nothing;
    perform pg_notify('teamturn_cancelled', '');
end;
$$;

-- Stores the answers of finished or refused runs, and drops their attempts, journals and
-- cancellations.
--   entries: [{"position", "run_id", "session_id", "user_id", "target_type", "target_id", "fingerprint" (hex),
--   "status"}]; replies: the replies' bytes, by position from 1
create or replace function store_receipts(entries jsonb, replies bytea[]) returns void
language plpgsql volatile  -- whose plans are kept: as SQL it was planned in each commit (0.25 ms, then 0.05)
as $$
begin
    delete from turn_attempts as attempt
    where attempt.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

    delete from turn_steps as step
    where step.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

    delete from cancellations as cancelled
    where cancelled.run_id = any (array(select entry ->> 'run_id' from jsonb_array_elements(entries) as entry));

    insert into receipts (
        run_id, session_id, user_id, target_type, target_id, fingerprint, status, reply
    )
    select
        entry.run_id, entry.session_id, entry.user_id, entry.target_type, entry.target_id,
        decode(entry.fingerprint, 'hex'), entry.status, replies[entry."position"]
    from jsonb_to_recordset(entries) as entry (
        "position" integer, run_id varchar, session_id varchar, user_id varchar, target_type varchar,
        target_id varchar, fingerprint varchar, status varchar
    )
    -- Two batches may hold the same run_ids, of different sessions; in one order they can't deadlock.
    order by entry.run_id;
end;
$$;
