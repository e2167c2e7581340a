"""The launch of a script: its session, its workers, the confirmation and the result."""
