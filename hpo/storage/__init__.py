"""Database access: connections, leases, trials and studies."""
