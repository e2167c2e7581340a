"""The database: connections, leases, trials and studies."""
