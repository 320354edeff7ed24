"""isospike."""
