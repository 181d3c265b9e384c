"""What people look at: trajectory records, strips, pages, tables and plots."""
