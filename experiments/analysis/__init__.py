"""From run records to statistics, scores and findings."""
