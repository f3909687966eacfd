"""Postgres: lanes, claims, commits and rows.

Postgres is authoritative for what a session is and for who may write it. A session's advisory lock is taken on
one lane; whatever is written for its turn goes through the same connection. A worker that lost the lock lost the
connection, and with it every way to write.
"""
