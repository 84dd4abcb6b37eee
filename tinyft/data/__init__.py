"""Data as people have them: files to entries, entries to prompts, prompts to batches."""
