"""The neuron recurrence in three engines."""
