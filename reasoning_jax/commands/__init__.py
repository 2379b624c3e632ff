"""One module a command; each takes parsed flags and returns an exit code."""
