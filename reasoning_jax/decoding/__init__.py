"""Sampling from a model: backspace as rewind, filters, exact log-probabilities."""
