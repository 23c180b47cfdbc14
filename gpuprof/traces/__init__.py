"""What happened, as a profiler recorded it: neutral events, and whose work each of them is. No torch."""
