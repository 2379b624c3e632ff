"""Mathematics of the losses: arrays in, (sum, count) out; no model, no config, no I/O."""
