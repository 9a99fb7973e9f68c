"""Task families on real data."""
