"""From tasks and files to batches."""
