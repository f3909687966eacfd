-- Deletes old receipts whose session is not there: it was deleted, or its only requests were refused. Looks at a page of all
-- receipts, by their key: that needs no index by age, which each turn would have to write.
-- Of before $1 bigint (unix seconds), of a user ($2 text), a type ($3 text), a target ($4 text); null: any. After $5 text (the
-- run_id of the last one of the page before; null: from the beginning); $6 bigint: so many are looked at.
-- One row: receipts, bytes, last_run_id (null: there was none to look at).
with page as materialized (
    select looked.run_id, looked.session_id, looked.created_at, looked.user_id, looked.target_type, looked.target_id
    from receipts as looked
    where $5::text is null or looked.run_id > $5
    order by looked.run_id
    limit $6
),
gone as (
    delete from receipts as receipt using page
    where receipt.run_id = page.run_id
      and page.created_at < to_timestamp($1)
      and ($2::text is null or page.user_id = $2)
      and ($3::text is null or page.target_type = $3)
      and ($4::text is null or page.target_id = $4)
      and not exists (select from agno_sessions as session where session.session_id = page.session_id)
    returning pg_column_size(receipt.reply) as size
)
select
    (select count(*) from gone) as receipts,
    (select coalesce(sum(gone.size), 0) from gone)::bigint as bytes,
    (select max(page.run_id) from page) as last_run_id;
