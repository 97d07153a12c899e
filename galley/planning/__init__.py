"""What a step costs: its work by op, the machine's limits, and steps timed without an engine."""
