"""The checks, one subject a file; each adds its findings to the trial."""
