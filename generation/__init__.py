"""What generate.py does: a model is loaded as any user loads it, plays, and leaves a page to see and hear."""
