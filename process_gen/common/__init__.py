"""What every room may use: names and values that a user types, and files on disks that fail."""
