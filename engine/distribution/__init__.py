"""More than one device: which examples a replica takes, and what the devices and workers of a run tell each other."""
