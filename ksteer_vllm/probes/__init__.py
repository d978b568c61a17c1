"""The probe folder: what a fit leaves, read back and checked."""
