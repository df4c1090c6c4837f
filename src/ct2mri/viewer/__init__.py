"""The viewer: a page to look at volumes in, and the loopback server behind it."""
