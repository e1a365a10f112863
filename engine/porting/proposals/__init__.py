"""Proposes rules for a port: which tensor could become which variable, and with what confidence."""
