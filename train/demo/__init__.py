"""The clock, end to end."""
