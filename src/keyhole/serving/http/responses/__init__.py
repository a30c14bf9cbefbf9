"""`/v1/responses`: input items, the response object, and its stream of events."""
