"""N daemons are one gateway: sessions sprayed over them, rolling restarts, one listening socket for all."""
