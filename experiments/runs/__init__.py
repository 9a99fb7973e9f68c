"""Execution of the arms of a comparison on its tasks and seeds, and the records of it."""
