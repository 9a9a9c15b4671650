//! Reference workloads: short scripts that each reach a part of the engine where crashes hurt.
