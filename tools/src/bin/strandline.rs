//! strandline.
fn main() {}
