"""Products of spikes."""
