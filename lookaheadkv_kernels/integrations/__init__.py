"""Bridges to model libraries and serving engines."""
