"""What the sandbox says when it can not do its work."""


class SandboxError(Exception):
    """No server could be had, or one failed; the text is for people: what is wrong and what helps."""


class WayClosedError(SandboxError):
    """One way to a server is not open on this machine, the next is tried; the text says what is missing."""


class StartError(SandboxError):
    """A program of the sandbox ended, or did not answer in time; the text ends with its last log lines."""

    def __init__(self, text: str, log: str) -> None:
        super().__init__(f"{text}\n{log}".rstrip())
        self.log = log
