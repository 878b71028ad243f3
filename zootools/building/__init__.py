"""Building a zoo: check, plan, train, finish."""
