"""Generation, without Ray, FastAPI or Settings. Import it before torch."""

import os

# Threads that wait for each other's part of a computation spin for some microseconds, then sleep. OpenMP's default is to spin for
# milliseconds, which takes the cores from whoever else has work: the requests that prepare their next step, another replica, a notebook
# beside it. Without any spinning a picture on its own takes half as long again. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import transformers

# Before diffusers is imported: its import makes transformers warn of optional packages. Later warnings quote the ends of prompts that are
# too long.
transformers.logging.set_verbosity_error()
