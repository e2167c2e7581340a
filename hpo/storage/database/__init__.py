"""Connections to the database: URLs, locks, retries, and messages for its errors."""
