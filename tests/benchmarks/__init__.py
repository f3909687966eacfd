"""The benchmark that `deploy/bench` runs: what teamturn costs, measured beside its peers.

What is compared runs in the same run, alternating, on the same private RabbitMQ and Postgres with their default
durability: durable quorum queues, persistent messages, confirmed publishes, on every side. The worker and its peers
are processes of their own, each on a database that is a fresh copy of the same template. Queues are filled while
nobody consumes them; a pace is taken from the first tenth of the replies to the last tenth, by a consumer of the
results queue that does nothing else; then every request must have been answered, in one way, or there is no figure.

`figures` names what is measured and what it should reach, `plan` says how much of it.
"""
