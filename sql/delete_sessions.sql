-- Deletes sessions with their runs and all that is left of their turns, but for the receipts; whoever runs this holds their
-- locks. See the function in migrations/. $1 text[]: session ids. One row: sessions, runs, bytes.
select sessions, runs, bytes from delete_sessions($1);
