"""What a program takes on hardware that is not there: topologies, compiled text, exchanges, estimates."""
