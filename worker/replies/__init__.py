"""RabbitMQ out, on a connection apart from the intake's.

Under a memory or disk alarm the broker blocks a connection that publishes; acknowledgements on it would be blocked too.
"""
