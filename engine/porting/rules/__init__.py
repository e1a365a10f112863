"""The language of rule files, and the rules that ship with Frostline."""
