"""Measures of a trained model: accuracy, pass@k, recovery from corrupted prefixes."""
