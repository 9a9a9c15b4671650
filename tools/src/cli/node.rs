//! `serve`, `follow` and `promote`: a node among others.
