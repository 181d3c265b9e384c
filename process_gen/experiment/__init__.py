"""From a config and a command line to objects, with errors that name what is wrong."""
