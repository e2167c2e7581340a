"""From a study file to a result."""
