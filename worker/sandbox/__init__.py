"""A private RabbitMQ and Postgres, for the demo and the tests."""

from worker.sandbox.box import Sandbox
from worker.sandbox.errors import SandboxError
from worker.sandbox.server import Server

__all__ = ["Sandbox", "SandboxError", "Server"]
