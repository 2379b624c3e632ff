"""The training step (pure) and the loop around it (impure)."""
