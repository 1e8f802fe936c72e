"""Contracts that every implementation of an interface is held to."""
