"""The media fleet: long-running asyncio processes. `stun` and `turn` are pure protocol cores, `relay` is the shell with sockets and clock."""
