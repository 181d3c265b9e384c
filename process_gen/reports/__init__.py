"""What people look at: listings of trajectories, strips, pages, tables and plots."""
