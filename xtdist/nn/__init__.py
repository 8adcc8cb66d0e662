"""The parts of a transformer: attention, positions, norms, feed-forward, embedding."""
