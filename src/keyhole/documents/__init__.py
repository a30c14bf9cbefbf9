"""Documents that are read once and asked for ever."""

# What reads documents imports torch, what lists and removes them does not: each is imported from its module.
