"""From finished grids to claims with verdicts: tidy tables, paired effects with intervals, the page."""
