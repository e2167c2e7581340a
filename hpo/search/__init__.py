"""Samplers, pruners and the scheduler: pure functions of the trials of a study."""
