"""Features of the frozen part on disk: what is kept, for how long, and when it pays."""
