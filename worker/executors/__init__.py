"""What can take a turn: the protocol, functions made executors, and the registry of TEAMTURN_TEAMS."""
