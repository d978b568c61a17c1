"""Experiments with steering: many requests in one batch, kept as they come in, written up in a folder."""
