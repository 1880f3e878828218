"""Checks before any rank starts working."""
