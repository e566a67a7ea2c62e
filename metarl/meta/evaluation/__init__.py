"""Returns on held-out tasks: reports, intervals, comparisons, tables and figures."""
