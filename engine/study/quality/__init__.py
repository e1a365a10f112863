"""Quality mode of a study: each strategy at its best, judged once on a part that had no say in any choice."""
