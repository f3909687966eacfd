"""Who asks, and ids that say whose they are: signed with the gateway's secret, so that nothing has to be stored."""

import base64
import hashlib
import hmac
import os
import re
import secrets
import uuid
from pathlib import Path
from typing import Final

_ID: Final = re.compile(r"[a-z]+-([0-9a-f]{32})-[A-Za-z0-9_-]{22}")
_TAG_BYTES: Final = 16


class Signer:
    """Makes ids for a user, and knows them again. Any gateway with the same secret knows them, after a restart too.

    An id has 60 characters at most, so that it stands in the events' routing keys as it is.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new_user(self) -> str:
        """Return the id of a user nobody has been yet."""
        return f"web-{uuid.uuid4().hex}"

    def cookie(self, user_id: str) -> str:
        """Return what the user's browser keeps, and shows to be that user."""
        return f"{user_id}.{self._tag('cookie', user_id)}"

    def user_of(self, cookie: str) -> str | None:
        """Return whose cookie it is; None if it is not one of ours."""
        user_id, _, _ = cookie.rpartition(".")
        return user_id if user_id and hmac.compare_digest(cookie.encode(), self.cookie(user_id).encode()) else None

    def session(self, user_id: str, core: str) -> str:
        """Return the id of a user's conversation. Its first run has the same core: 32 hex digits."""
        return f"chat-{core}-{self._tag('chat', user_id, core)}"

    def run(self, user_id: str, session_id: str, core: str) -> str:
        """Return the id of a run of a user's conversation."""
        return f"run-{core}-{self._tag('run', user_id, session_id, core)}"

    def made_session(self, user_id: str, session_id: str) -> bool:
        """Whether this conversation was begun here, by this user."""
        return hmac.compare_digest(session_id.encode(), self.session(user_id, core_of(session_id)).encode())

    def made_run(self, user_id: str, session_id: str, run_id: str) -> bool:
        """Whether this run was begun here, by this user in this conversation."""
        return hmac.compare_digest(run_id.encode(), self.run(user_id, session_id, core_of(run_id)).encode())

    def _tag(self, *what: str) -> str:
        digest = hmac.digest(self._secret, "\0".join(what).encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_TAG_BYTES]).decode().rstrip("=")


def new_core() -> str:
    """Return 32 hex digits that nobody can guess."""
    return uuid.uuid4().hex


def core_of(made: str) -> str:
    """Return what an id was made of; nothing if it is none of ours."""
    found = _ID.fullmatch(made)
    return found[1] if found else ""


def kept_secret(path: Path) -> bytes:
    """Return the secret in this file; make one if there is none. Only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()
