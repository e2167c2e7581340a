"""Samplers: proposals of parameters."""
