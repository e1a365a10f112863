"""The endurance campaign (``frostline endure``): damage, kills, full disks, hostile graphs, two runs at once, long runs."""
