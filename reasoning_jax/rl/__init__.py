"""From rollouts to batches: what learns from the model's own samples. No losses, no files."""
