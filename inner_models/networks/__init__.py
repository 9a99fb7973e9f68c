"""Network architectures shared by task families."""
