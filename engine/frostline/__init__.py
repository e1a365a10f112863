"""Where the frozen part of a traced step ends, and how the step is cut there."""
