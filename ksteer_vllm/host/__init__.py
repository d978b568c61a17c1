"""The only place (with `ksteer_vllm.server`) that knows vLLM's names.

seams.py is the ledger of every replaced symbol of the engine; the other modules hold what goes there.
"""
