"""Documents that are read once and asked for ever."""
