"""The language of rule files, and the rule files that ship with Frostline."""
