"""From a URL to connections: pools, limits, poolers, locks."""
