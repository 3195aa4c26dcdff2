//! regent
fn main() {}
