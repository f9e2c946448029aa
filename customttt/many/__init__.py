"""Many jobs at once: an engine, who does its jobs, grids of videos, and a page to look at them."""
