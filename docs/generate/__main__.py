"""`python -m docs.generate`."""

from docs.generate import write

print("\n".join(write()) or "nothing was out of date")
