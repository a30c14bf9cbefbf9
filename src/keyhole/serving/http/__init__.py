"""The HTTP face of a scheduler: OpenAI's API, documents, health and metrics.

Needs the extra `keyhole[server]`. What is checked before a model is loaded (`settings`, `keys`) imports
neither it nor torch.
"""
