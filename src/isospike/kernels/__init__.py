"""Products and recurrences on spikes: one meaning, several engines."""
