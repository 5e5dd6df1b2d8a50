"""Measure: one trial on a device, from the request to its figures. The worker, what it runs, and who speaks to it."""
