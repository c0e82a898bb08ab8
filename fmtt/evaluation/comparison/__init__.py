"""Methods compared at equal cost: cells of independent runs, their statistics, figures and page."""

UNITS = ("passes", "reward_calls", "seconds")
"""What a budget can be counted in."""
