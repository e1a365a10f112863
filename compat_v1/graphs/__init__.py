"""Old graphs as data: parsed, checked for safety, cut down, and run only when asked."""
