"""Task families whose targets come from random teacher networks."""
