"""What is measured of videos, of a base, and of one method beside another."""
