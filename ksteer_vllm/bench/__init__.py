"""Experiments with steering: many requests in one batch, kept as they come in, shown in a folder."""
