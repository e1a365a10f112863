"""Old checkpoint files: finding, reading and writing them."""
