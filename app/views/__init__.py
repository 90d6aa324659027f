"""Pure functions from run records to plotly figures; they import numpy, plotly and the trace records only."""
