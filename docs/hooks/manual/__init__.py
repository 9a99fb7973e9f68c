"""Makes the parts of the manual that are read off the repository; `docs/hooks/main.py` calls it."""
