"""The ladder: training strategies compared on one data set, with a recommendation."""
