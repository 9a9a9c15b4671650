//! walinspect.
fn main() {}
