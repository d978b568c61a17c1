"""The demo on a real model: SmolLM2-135M-Instruct, five behaviours in words. Nothing else is shipped."""
