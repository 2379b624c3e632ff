"""A decoder transformer as pure functions over parameter pytrees."""
