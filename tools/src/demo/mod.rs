//! `strandline demo`.
pub mod node;
