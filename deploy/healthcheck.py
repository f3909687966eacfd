"""The image's health check: exit code 0 if the worker's event loop comes round, as its /healthz says.

    python -I healthcheck.py            it lives
    python -I healthcheck.py /readyz    it takes requests, or stands by

With TEAMTURN_HTTP_PORT=0 nobody can ask, and the process that lives is taken to be well. Of `--processes N` the first
one is asked; the supervisor looks after the others.
"""

# ruff: noqa: INP001 - a program beside the packages, not one of them
import http.client
import os
import sys

SECONDS = 4


def main(path: str) -> int:
    """Ask for that page, and say on standard error what is wrong."""
    port = int(os.environ.get("TEAMTURN_HTTP_PORT") or 8080)
    if port == 0:
        return 0
    # Not urllib: a proxy in the environment is for models, not for this.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read(1000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer at port {port}: {error!r}", file=sys.stderr)
        return 1
    if answer.status != http.client.OK:
        print(f"{path} answers {answer.status}: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "/healthz"))
