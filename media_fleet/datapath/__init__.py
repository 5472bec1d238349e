"""The optional compiled data path of the relay: C forwards relayed datagrams, Python keeps every decision. Without a library everything works without it."""
