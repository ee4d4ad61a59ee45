"""Jacobian rows of a network, their order, and the curvature over a loader as rows."""
