"""One readable file per training stage."""
