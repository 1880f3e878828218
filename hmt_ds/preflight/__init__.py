"""Checks of a recipe, and loading of its data, before any rank starts training."""
