"""Small random models of every architecture that is tried."""
