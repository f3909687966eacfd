-- Deletes what old runs have left that were never answered; see the function in migrations/.
-- $1 bigint: begun before then, unix seconds. One row: runs, steps.
select runs, steps from prune_journal($1);
