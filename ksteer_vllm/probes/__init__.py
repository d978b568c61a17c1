"""The probe folder: what a fit writes, read back and checked."""
