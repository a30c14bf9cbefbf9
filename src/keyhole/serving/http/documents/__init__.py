"""`/v1/documents`: stored documents as named objects."""
