"""Command-line options, progress display and the dashboard server."""
