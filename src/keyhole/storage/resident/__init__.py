"""What stays in fast memory in front of a slower tier."""
