"""What a trained model does inside: probes of its thoughts. Draws nothing, writes no file."""
