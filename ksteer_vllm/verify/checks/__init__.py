"""The checks, one topic per file; each adds its findings to the trial."""
