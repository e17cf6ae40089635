"""Generation, without Ray, FastAPI or Settings."""
