-- Deletes what a user has said is not wanted any more. $1 text: user_id.
delete from cancellations where user_id = $1;
