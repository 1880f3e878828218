"""Checks of a recipe before any rank starts working."""
