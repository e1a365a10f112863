"""Proposals for a port: which tensor could be which variable, and how sure that is."""
