"""What a step will need, and the plan that fits a budget."""
