"""Reports for people: listings of trajectories, strips of images, HTML pages, tables and plots."""
