-- What Postgres itself notes of what the workers store, in the very transactions that store it.

create schema chaos;

-- A row each time that a run's row is inserted: a run that is stored twice has two.
create table chaos.stored (
    run_id  text not null,
    at      timestamptz not null
);

-- A row each finished step of a turn; the journal's own rows are gone with the commit.
create table chaos.recorded (
    run_id  text not null,
    step    text not null,
    at      timestamptz not null,
    primary key (run_id, step)
);

-- When it was stored that a run is not wanted any more; the rows themselves are gone with its answer.
create table chaos.cancelled (
    run_id      text not null,
    session_id  text not null,
    user_id     text,
    at          timestamptz not null
);

create function chaos.note_run() returns trigger language plpgsql as $$
begin
    if new.parent_run_id is null then
        insert into chaos.stored values (new.run_id, clock_timestamp());
    end if;
    return null;
end;
$$;

create trigger chaos_note_run after insert on ai.agno_runs for each row execute function chaos.note_run();

-- Who waits for the commit of a run hears of it when it is committed, and not before.
create function chaos.note_receipt() returns trigger language plpgsql as $$
begin
    if new.run_id like 'kill_after_commit%' then
        perform pg_notify('chaos_committed', new.run_id);
    end if;
    return null;
end;
$$;

create trigger chaos_note_receipt after insert on ai.receipts for each row execute function chaos.note_receipt();

create function chaos.note_step() returns trigger language plpgsql as $$
begin
    if new.state in ('done', 'failed') then
        insert into chaos.recorded values (new.run_id, new.key, clock_timestamp()) on conflict do nothing;
    end if;
    return null;
end;
$$;

create trigger chaos_note_step after insert or update on ai.turn_steps for each row execute function chaos.note_step();

create function chaos.note_cancellation() returns trigger language plpgsql as $$
begin
    insert into chaos.cancelled values (new.run_id, new.session_id, new.user_id, clock_timestamp());
    return null;
end;
$$;

create trigger chaos_note_cancellation after insert on ai.cancellations
for each row execute function chaos.note_cancellation();
