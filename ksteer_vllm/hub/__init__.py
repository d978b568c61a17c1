"""Probe folders and suites to and from the Hugging Face hub."""
