"""Re-ID heads, and later the fixed networks."""
