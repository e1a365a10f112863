"""Who may write which variable, in any graph, and why."""
