"""Worker pools and their supervision."""
