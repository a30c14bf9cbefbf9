"""The run time of one attention layer: what is stored, indexed and read, step by step."""
