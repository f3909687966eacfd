"""RabbitMQ in: the topology, the partitions, and a mailbox for each session.

RabbitMQ is authoritative for which requests are unfinished and for their order. A request is acknowledged only after
its reply is confirmed. Work is given back by closing a channel, never by nack or reject: the broker then returns
everything unacknowledged to the head of the queue, in order.
"""
