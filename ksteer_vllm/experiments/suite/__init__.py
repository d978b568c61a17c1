"""Probes of several methods fitted to the same data."""
