"""Web: the daemon over HTTP, as JSON for programs and as pages for browsers."""
