"""What `deploy/chaos` runs: hundreds of sessions that keep asking, while everything around them breaks, and a verdict.

A seeded schedule (`plan`) kills and freezes workers, crashes and restarts RabbitMQ and Postgres, cuts single
connections and slows them down; requests are published twice, and some kill their worker. `kill_points` kills a worker
between each two rows of the crash table. Workers reach the servers by way of this process (`lines`), and their model is
a stub in a process of its own (`model`); that is all that is needed for it: the product has no hooks. Some of those who
ask watch, cancel, interrupt, or don't wait (`moves`).

What the producer, the consumer, the stub and Postgres's own triggers (`ledger.sql`) have seen is the `evidence`; the
`checks` are pure functions of it.
"""
