"""Encryption at rest: keys, sealed texts, and encryption in place."""
