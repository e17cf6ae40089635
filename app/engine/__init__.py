"""Generation, without Ray, FastAPI or Settings. Import it before torch."""

import os

# Threads that wait for each other's part of a computation sleep. OpenMP's default is to spin, which takes the cores from whoever else has
# work: the requests that prepare their next step, another replica, a notebook beside it. It is read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import transformers

# Before diffusers is imported: its import makes transformers warn of optional packages. Later warnings quote the ends of prompts that are
# too long.
transformers.logging.set_verbosity_error()
