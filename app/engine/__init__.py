"""Generation, without Ray, FastAPI or Settings."""

import transformers

# Before diffusers is imported: its import makes transformers warn of optional packages. Later warnings quote the ends of prompts that are
# too long.
transformers.logging.set_verbosity_error()
