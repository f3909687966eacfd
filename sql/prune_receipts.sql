-- Deletes old receipts whose session is not there: it was deleted, or its only requests were refused. A page of old receipts at
-- a time. Of before $1 bigint (unix seconds), of a user ($2 text), a type ($3 text), a target ($4 text); null: any. After
-- $5 timestamptz, $6 text (created_at and run_id of the last one of the page before; null: from the beginning); $7 bigint: so
-- many at most are looked at. One row: receipts, bytes, last_created_at, last_run_id (null: there was none to look at).
with page as materialized (
    select receipt.run_id, receipt.session_id, receipt.created_at
    from receipts as receipt
    where receipt.created_at < to_timestamp($1)
      and ($5::timestamptz is null or (receipt.created_at, receipt.run_id) > ($5, $6::text))
      and ($2::text is null or receipt.user_id = $2)
      and ($3::text is null or receipt.target_type = $3)
      and ($4::text is null or receipt.target_id = $4)
    order by receipt.created_at, receipt.run_id
    limit $7
),
gone as (
    delete from receipts as receipt using page
    where receipt.run_id = page.run_id
      and not exists (select from agno_sessions as session where session.session_id = page.session_id)
    returning pg_column_size(receipt.reply) as size
),
last as (
    select page.created_at, page.run_id from page order by page.created_at desc, page.run_id desc limit 1
)
select
    (select count(*) from gone) as receipts,
    (select coalesce(sum(gone.size), 0) from gone)::bigint as bytes,
    (select last.created_at from last) as last_created_at,
    (select last.run_id from last) as last_run_id;
