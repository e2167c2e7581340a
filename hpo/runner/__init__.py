"""Execution of trials in one worker process."""
