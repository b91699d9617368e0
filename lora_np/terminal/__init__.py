"""Plain text for terminals: tables and progress bars."""
