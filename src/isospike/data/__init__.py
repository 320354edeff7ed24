"""What the package ships, and readers of the user's files."""
