"""reasoning_jax: train, sample and compare reasoning models that can take things back."""
