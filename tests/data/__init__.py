"""What tests hand to the real command: modules of teams, and programs in other languages."""
