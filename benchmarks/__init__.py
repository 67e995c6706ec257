"""Measurements on this machine; `studies` has what `jobs/benchmark.py` runs. No code of the product imports them."""
