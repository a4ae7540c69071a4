"""Turn the outside world into core values, and decide nothing."""
