"""A conversation with a steered model in the terminal: what is typed, what is asked, what is kept."""
