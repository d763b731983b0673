"""What the commands do once their command line is checked. A command's `main` imports its module here."""
