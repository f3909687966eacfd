"""The worker service: run requests in, stored sessions and replies out."""
