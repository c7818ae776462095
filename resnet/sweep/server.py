"""Imported last by the process that jobs are forked from: their garbage collectors leave alone what is there already.

They would look through some million objects, and thereby copy their memory.
"""

import gc

gc.collect()
gc.freeze()
