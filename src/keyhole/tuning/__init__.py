"""From which context length on a method pays: measured only when a user asks for it."""
