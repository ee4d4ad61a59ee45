"""Loaders, batches and pytrees: data before any curvature."""
