//! The store on one server: SQLite in WAL mode, one writer thread, group commit.
