"""``dvpd serve``: recordings over HTTP, live sound over WebSocket, one engine for each."""
