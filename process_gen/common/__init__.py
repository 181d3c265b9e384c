"""What every room may use: names that a user types, and files on disks that fail."""
