"""Files, geometry and intensities; no networks."""
