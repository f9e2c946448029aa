"""The command line of customttt."""
