"""What can be said without training."""
