"""Behaviours that code can check, on a real model: how well each method steers, and what it costs."""
