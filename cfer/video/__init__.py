"""Frames of videos with their times, and the face in them."""
