"""The documentation's pages, and what generates parts of them (`python -m docs.generate`)."""
