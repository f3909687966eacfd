"""Executing a team's turn, on pydantic-ai: the leader, its members, and what of the session the model sees."""
