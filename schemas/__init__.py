"""What crosses a boundary: pydantic models of messages and stored rows. No I/O, and nothing else of ours."""
