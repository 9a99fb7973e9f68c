"""The arms of a comparison: search spaces, schedules and baselines."""
