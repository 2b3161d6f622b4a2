"""Sprites: scenes composed of real emoji pictures in two drawing styles."""
