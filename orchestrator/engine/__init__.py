"""How a study runs: its course as a list of segments, and the journal that is its only state."""
