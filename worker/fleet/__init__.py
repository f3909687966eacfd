"""What the workers of a prefix have in common."""
