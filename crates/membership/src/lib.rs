//! The nodes' own failure detector: who is alive, seen without a server.
