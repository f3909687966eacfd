"""The client of Python producers: publish run requests, get their replies and events.

- `client`: `RunClient`, what a producer calls.
- `pending`: one request, published until it is answered.
- `link`: one connection, from its opening to its loss.
- `reconnector`: the present link, and a new one whenever it is lost.
- `watch`: the events of one run.
- `submitted`: the requests whose reply is asked for later.

What makes it simple: a request's run_id is its idempotency key. Whatever is lost on the way, a confirm, a reply, the
connection that a direct reply-to is bound to, the same request is published again and gets the same reply.

It imports no model library, no database driver and no settings: a producer needs none of them.
"""

from __future__ import annotations

from worker.client.client import RunClient

__all__ = ["RunClient"]
