"""What taking a turn consists of, beside the story itself, which is worker.turn."""
